"""The pointing game: does the explanation of a drawing's caption point at the drawing?

    python -m benchmarks.pointing [--quick] [--save] [--seeds N] [--only RECIPE ...] [--runs FOLDER] [--figure]

A held-out drawing is pasted into one quadrant of a canvas of 2 x 2, and the canvas is explained with the drawing's
caption. It is a hit if the largest value of the map lies in that quadrant
(Zhang et al. 2018, "Top-down neural attention by excitation backprop"); of several equally large places each counts its
share, so that a map of zeros is a quarter of a hit. Chance is 25%. Beside it stands the share of the whole map that
lies in the quadrant. The other quadrants are

* ``blank``: white. Any map that prefers ink to paper wins this game, whatever the caption says;
* ``distractors``: three other held-out drawings, whose captions share no word with the first one's.

Each is also played with the caption of a drawing that is not on the canvas (``..., another caption``): among
distractors that must be chance, on a blank canvas it shows how much of a hit is the caption's doing.

The drawings are ``NUM`` of each of the embedded splits that no recipe learns from: ``retrieval`` (unseen clip art, many
of whose titles say little), ``concept`` (emoji whose names were never trained on) and ``style-shift`` (emoji with names
that were, in a style that was not).

Each recipe is trained as shipped, but for what ``SETTINGS`` says. Quadrants and distractors are drawn from the seed,
for each drawing by itself. Nothing was chosen on these drawings. Means are over drawings and seeds; ``standard_error``
is that of drawings (each averaged over the seeds), ``seeds_standard_error`` that of the seeds' means.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.seeds import trained
from benchmarks.table import Record, arguments, kept, report, save

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "figures" / "explanations.png"
CHANCE = 25.0

#: What is set while a recipe is trained, and while its run is explained. Heads learn from whole drawings at 112 px and
#: are then asked about canvases of 256 px, which shows a drawing at nearly that size (128) and gives a grid of 8 x 8. A
#: vision transformer takes one size only: its drawings shrink to half; smaller patches give it as fine a grid.
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "heads-infonce": ((), ("model.image_size=256",)),
    "heads-oblique": ((), ("model.image_size=256",)),
    "small-infonce": (("model.patch_size=8",), ()),
}
DEFAULT = ("heads-infonce", "small-infonce")
SPLITS = ("retrieval", "concept", "style-shift")
VARIANTS = ("blank", "distractors")
#: Drawings of each split, at even distances.
NUM = 200


@dataclass(frozen=True)
class Canvas:
    """One game: a picture, where the drawing is, and what is asked.

    Attributes:
        image: the canvas.
        quadrant: of the drawing, row by row.
        caption: the drawing's.
        other: that of a drawing which is not there.
    """

    image: Image.Image
    quadrant: int
    caption: str
    other: str


def drawings(split: str) -> list[tuple[Image.Image, str]]:
    """Return the drawings of a held-out split with their captions."""
    from troth.data import EmbeddedSource, decode

    source = EmbeddedSource(split=split).open()
    return [(decode(source.read_image(i)), source.captions(i)[0]) for i in range(len(source))]


def words(caption: str) -> set[str]:
    """The words of a caption without their endings' s, to tell different things by."""
    return {word.strip(".,()'\"-").removesuffix("s") for word in caption.lower().split()} - {"", "a", "an", "the"}


def canvas(known: Sequence[tuple[Image.Image, str]], index: int, side: int, variant: str, seed: int) -> Canvas:
    """Paste drawing ``index`` into a quadrant of a canvas of ``side`` pixels; the same for the same arguments."""
    draw = np.random.default_rng([seed, index])
    quadrant = int(draw.integers(4))
    taken = words(known[index][1])
    strangers: list[int] = []
    for number in draw.permutation(len(known)).tolist():
        if number != index and not words(known[number][1]) & taken:
            strangers.append(number)
            taken |= words(known[number][1])
            if len(strangers) == 4:
                break
    half = side // 2
    image = Image.new("RGB", (side, side), "white")
    others = iter(strangers[:3])
    for place in range(4):
        if place == quadrant or variant == "distractors":
            chosen = index if place == quadrant else next(others)
            part = known[chosen][0].resize((half, half), Image.Resampling.BICUBIC)
            image.paste(part, (place % 2 * half, place // 2 * half))
    return Canvas(image, quadrant, known[index][1], known[strangers[3]][1])


def game(weights: Any, quadrant: int) -> tuple[float, float]:
    """Return whether the map ``(H, W)`` points at a quadrant (shared among ties), and its share of the whole map."""
    down, across = weights.shape[0] // 2, weights.shape[1] // 2
    top, left = quadrant // 2 * down, quadrant % 2 * across
    inside = np.zeros(weights.shape, dtype=bool)
    inside[top : top + down, left : left + across] = True
    largest = weights == weights.max()
    total = float(weights.sum())
    return float(largest[inside].sum() / largest.sum()), float(weights[inside].sum() / total) if total else 0.25


def play(explainer: Any, games: Sequence[Canvas]) -> dict[str, list[tuple[float, float]]]:
    """Return hits and shares of every game, with the drawing's caption and with another."""
    found: dict[str, list[tuple[float, float]]] = {"": [], ", another caption": []}
    for each in games:
        for name, caption in (("", each.caption), (", another caption", each.other)):
            found[name].append(game(explainer.explain(each.image, caption).full.image, each.quadrant))
    return found


def opened(recipe: str, seed: int, quick: bool, runs: Path) -> Any:
    """Train a recipe, or take up a run that stopped; return its explainer."""
    from troth.explain import Explainer
    from troth.recipe import load
    from troth.run import open_run

    training, explaining = SETTINGS[recipe]
    folder = runs / ("quick" if quick else "full") / f"{recipe}-{seed}"
    settings = [*training, f"seed={seed}", "train.tensorboard=false", "evaluation.tasks=[]"]
    trained(load(recipe, [*settings, *(["train.epochs=2"] if quick else [])]), folder)
    return Explainer(open_run(folder, "last", explaining).model)


def played(recipe: str, seeds: Sequence[int], quick: bool, runs: Path) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the results of every case: one list a seed."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for seed in seeds:
        explainer = opened(recipe, seed, quick, runs)
        side = explainer.model.encoder.image_size
        for split in SPLITS:
            known = drawings(split)
            for variant in VARIANTS:
                chosen = spread(len(known), 20 if quick else NUM)
                games = [canvas(known, index, side, variant, seed) for index in chosen]
                for name, results in play(explainer, games).items():
                    found.setdefault(f"{split}, {variant}{name}", []).append(results)
                    hits = 100 * statistics.fmean(hit for hit, _ in results)
                    print(f"{recipe}, seed {seed}: {split}, {variant}{name}: {hits:.1f} % hits", flush=True)
    return found


def spread(size: int, count: int) -> list[int]:
    """Return ``count`` of the numbers below ``size``, at even distances."""
    return sorted({number * size // count for number in range(count)})


def summary(case: str, seeds: Sequence[Sequence[tuple[float, float]]]) -> Iterator[Record]:
    """Means and standard errors of hits and of shares, in percent."""
    for column, metric in enumerate(("hit_percent", "share_percent")):
        values = 100 * np.array([[each[column] for each in seed] for seed in seeds])
        yield Record(case, metric, float(values.mean()), CHANCE, "chance")
        by_drawing = values.mean(axis=0)
        yield Record(case, f"{metric} standard_error", float(by_drawing.std(ddof=1)) / math.sqrt(len(by_drawing)))
        if len(seeds) > 1:
            error = statistics.stdev(values.mean(axis=1).tolist()) / math.sqrt(len(seeds))
            yield Record(case, f"{metric} seeds_standard_error", error)


def draw(explainer: Any, path: Path, seed: int = 0, count: int = 8) -> None:
    """Draw games among distractors, of clip art at even distances in the split; hits are framed blue."""
    from PIL import ImageDraw, ImageFont

    from troth.explain import heat_over

    known, side = drawings("retrieval"), explainer.model.encoder.image_size
    games = [canvas(known, index, side, "distractors", seed) for index in spread(len(known), count)]
    scale, margin, line = 224, 12, 34
    columns, rows = 4, math.ceil(count / 4)
    cell = (scale, 2 * scale + 4 + line)
    page = Image.new("RGB", (columns * (cell[0] + margin) + margin, rows * (cell[1] + margin) + margin), "white")
    pen, font = ImageDraw.Draw(page), _font(ImageFont, 17)
    for number, each in enumerate(games):
        heat = explainer.explain(each.image, each.caption).full.image
        left = margin + number % columns * (cell[0] + margin)
        top = margin + number // columns * (cell[1] + margin)
        resized = each.image.resize((scale, scale), Image.Resampling.BICUBIC)
        large = Image.fromarray(heat.astype(np.float32)).resize((scale, scale), Image.Resampling.BILINEAR)
        hot = Image.fromarray(heat_over(np.asarray(resized), np.asarray(large, dtype=np.float64)))
        hit = game(heat, each.quadrant)[0] > 0.5
        caption = each.caption
        while pen.textlength(caption, font=font) > scale:
            caption = caption[:-2].rstrip() + "…"
        pen.text((left, top), caption, fill=(30, 30, 30), font=font)
        for place, picture in enumerate((resized, hot)):
            corner = (left, top + line - 6 + place * (scale + 4))
            page.paste(picture, corner)
            pen.rectangle((*corner, corner[0] + scale - 1, corner[1] + scale - 1), outline=(205, 205, 205))
        half = scale // 2
        x, y = left + each.quadrant % 2 * half, top + line - 2 + scale + each.quadrant // 2 * half
        pen.rectangle((x, y, x + half - 1, y + half - 1), outline=(0, 114, 178) if hit else (90, 90, 90), width=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under a third of the size; the eye finds but faint steps in the heat.
    small = page.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    small.save(temporary := path.with_suffix(".partial.png"), optimize=True)
    temporary.replace(path)


def _font(module: Any, size: int) -> Any:
    from matplotlib import font_manager

    return module.truetype(font_manager.findfont("DejaVu Sans"), size)


def command(recipes: Collection[str], seeds: int, quick: bool) -> str:
    """Return the command that measures these recipes."""
    only = [] if set(recipes) == set(DEFAULT) else ["--only", *(name for name in SETTINGS if name in recipes)]
    return " ".join(["python -m benchmarks.pointing", "--quick" if quick else f"--seeds {seeds}", *only])


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe")
    parser.add_argument("--only", nargs="+", metavar="RECIPE", choices=SETTINGS, default=DEFAULT, help="these recipes")
    parser.add_argument("--runs", type=Path, help="where runs are kept, and found again; forgotten by default")
    parser.add_argument(
        "--figure", nargs="?", type=Path, const=FIGURE, help=f"draw examples of the first recipe ({FIGURE.name})"
    )
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or Path(temporary)
        records: list[Record] = []
        for recipe in options.only:
            for variant, results in played(recipe, seeds, options.quick, runs).items():
                records += summary(f"{recipe}: {variant}", results)
        if options.figure:
            draw(opened(options.only[0], 0, options.quick, runs), options.figure)
    if options.save:
        others = kept("pointing", lambda case: case.partition(":")[0] in options.only)
        recipes = {each.case.partition(":")[0] for each in (*others, *records)}
        save("pointing", command(recipes, len(seeds), options.quick), options.save, others + records)
    report(f"Pointing game, {len(seeds)} seed(s), chance {CHANCE:.0f}%", records)


if __name__ == "__main__":
    main()
