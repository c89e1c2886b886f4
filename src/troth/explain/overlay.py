"""Explanations as pictures: heat over the picture, words shaded by their weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from troth.explain.explanation import Explanation, FloatArray, Importance

Pixels = npt.NDArray[np.uint8]

#: Side of a panel, its margin and the width of the words beside it, in pixels.
PANEL, MARGIN, WORDS = 288, 16, 400
#: How opaque the strongest heat is, and how much of the picture's own colour is kept under it.
_OPACITY, _COLOUR_KEPT = 0.75, 0.25
_INK, _FAINT = (30, 30, 30), (120, 120, 120)


def heat_over(picture: UInt8[Pixels, "H W 3"], weights: Float[FloatArray, "H W"]) -> UInt8[Pixels, "H W 3"]:
    """Lay heat over a picture: the stronger, the darker red and the less of the picture shows.

    The picture below is nearly grey, so that no colour of its own is taken for heat.

    Args:
        picture: bytes.
        weights: in [0, 1].
    """
    grey = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    base = _COLOUR_KEPT * picture + (1 - _COLOUR_KEPT) * grey[..., None]
    base = 255 - 0.8 * (255 - base)  # lighter, so that black lines do not look like heat
    alpha = (_OPACITY * np.clip(weights, 0, 1) ** 0.75)[..., None]
    mixed = (1 - alpha) * base + alpha * _colours(weights)
    result: Pixels = np.rint(mixed).clip(0, 255).astype(np.uint8)
    return result


def draw(explanation: Explanation, *, caption: str | None = None) -> Image.Image:
    """Draw an explanation: the picture with its caption, then a row of heat and shaded words for each score.

    Args:
        explanation: of the full score, and of single spheres if they were asked for.
        caption: as it was given; None joins the words.
    """
    rows = explanation.rows()
    width, height = 2 * PANEL + WORDS + 4 * MARGIN, len(rows) * (PANEL + MARGIN) + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    canvas.paste(_panel(explanation.picture), (MARGIN, MARGIN))
    _frame(pen, MARGIN, MARGIN)
    if len(rows) > 1:
        text = caption if caption is not None else " ".join(explanation.words)
        _wrapped(pen, text.split(), (MARGIN, 2 * MARGIN + PANEL), PANEL)
    for number, (name, part) in enumerate(rows):
        left, top = PANEL + 2 * MARGIN, MARGIN + number * (PANEL + MARGIN)
        canvas.paste(_panel(_heated(explanation.picture, part)), (left, top))
        _frame(pen, left, top)
        place = (left + PANEL + MARGIN, top)
        pen.text(place, f"{name}  {part.score:+.3f}", fill=_FAINT, font=_font(17))
        _wrapped(pen, explanation.words, (place[0], top + 32), WORDS, part.words)
    return canvas


def _heated(picture: Pixels, part: Importance) -> Pixels:
    """Enlarge first, so that the heat is smooth over the coarse pixels of a small picture."""
    large = np.asarray(_panel(picture))
    spread = Image.fromarray(part.image.astype(np.float32)).resize((large.shape[1], large.shape[0]), _BILINEAR)
    return heat_over(large, np.asarray(spread, dtype=np.float64))


_BILINEAR = Image.Resampling.BILINEAR


def _panel(picture: Pixels) -> Image.Image:
    image = Image.fromarray(picture)
    if image.size == (PANEL, PANEL):
        return image
    scale = PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    panel = Image.new("RGB", (PANEL, PANEL), "white")
    panel.paste(resized, ((PANEL - size[0]) // 2, (PANEL - size[1]) // 2))
    return panel


def _frame(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    pen.rectangle((left - 1, top - 1, left + PANEL, top + PANEL), outline=(205, 205, 205))


def _wrapped(
    pen: ImageDraw.ImageDraw,
    words: Sequence[str],
    place: tuple[int, int],
    width: int,
    weights: Float[FloatArray, " W"] | None = None,
) -> None:
    """Write words in lines of at most ``width`` pixels, on boxes of their heat; what has no room ends in dots."""
    font, (left, top) = _font(20), place
    space, line = 8, 38
    x, y = left, top
    bottom = top + PANEL - 2 * line
    for number, word in enumerate(words):
        length = int(pen.textlength(word, font=font)) + 8
        if x > left and x + length > left + width:
            x, y = left, y + line
        if y > bottom:
            pen.text((x, y), "…", fill=_INK, font=font)
            return
        ink: tuple[int, ...] = _INK
        if weights is not None:
            weight = float(weights[number])
            colour = _colours(np.array([weight]))[0]
            shade = tuple(int(value) for value in np.rint((1 - weight) * 255 + weight * colour))
            pen.rounded_rectangle((x, y, x + length, y + line - 8), radius=4, fill=shade)
            ink = (255, 255, 255) if sum(shade) < 380 else _INK
        pen.text((x + 4, y + 3), word, fill=ink, font=font)
        x += length + space


def _colours(weights: FloatArray) -> FloatArray:
    """Return colours in [0, 255], from pale yellow over orange to dark red, evenly ever darker."""
    from matplotlib import colormaps

    found: FloatArray = colormaps["YlOrRd"](np.clip(weights, 0, 1))[..., :3] * 255.0
    return found


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    # The font comes with matplotlib, so that a picture looks the same everywhere.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
