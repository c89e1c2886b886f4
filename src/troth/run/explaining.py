"""What a trained run sees in a picture: the verb ``troth explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from troth.data import SpikedSource, VectorsSource, atomic_path
from troth.encoders import Heads
from troth.errors import UserError
from troth.explain import Explainer, Explanation, draw
from troth.geometry import Oblique
from troth.run.opened import OpenedRun, open_run

#: Words shown of each single sphere.
STRONGEST = 4

#: Formats an overlay can be written in, by suffix.
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def explain(
    folder: Path,
    image: Path,
    text: str,
    out: Path,
    which: str = "best",
    *,
    spheres: str = "",
    arrays: Path | None = None,
    settings: Sequence[str] = (),
    weights: str | None = None,
) -> Explanation:
    """Explain a picture and a text under a run: print the words' weights, write the overlay and perhaps the arrays.

    Args:
        folder: the run.
        image: the picture's file.
        text: what it might show.
        out: the overlay's file.
        which: the checkpoint.
        spheres: ``all``, numbers between commas, or nothing.
        arrays: a ``.npz`` file for :meth:`~troth.explain.Explanation.arrays`, or None.
        settings: overrides of the run's recipe; ``model.image_size`` gives heads and convolutional towers a finer grid.
        weights: ``trained``, ``average``, or None for the average if the run keeps one.

    Raises:
        UserError: if something of this is not there, or cannot be explained.
    """
    form = _FORMATS.get(out.suffix.lower())
    if form is None:
        raise UserError(f"an overlay is a picture, not {out.suffix or 'a folder'}", where="--out", remedy="FILE.png")
    if arrays is not None and arrays.suffix != ".npz":
        raise UserError(f"writes .npz, not {arrays.suffix or 'a folder'}", where="--arrays", remedy="FILE.npz")
    if not image.is_file():
        raise UserError("no such picture", where=str(image))
    run = open_run(folder, which, settings, weights)
    _check_pictures(run)
    explainer = Explainer(run.model)
    try:
        found = explainer.explain(image.read_bytes(), text, spheres=_numbers(run, spheres))
    except UserError as error:
        if error.where == "IMAGE":
            raise UserError(error.message, where=str(image)) from None
        raise
    _write(draw(found, caption=text), out, form)
    if arrays is not None:
        found.save(arrays)
    _show(found, run)
    written = f"{out} and {arrays}" if arrays is not None else str(out)
    Console().print(f"written to {written}", highlight=False)
    return found


def _check_pictures(run: OpenedRun) -> None:
    if isinstance(run.recipe.model, Heads) and isinstance(run.recipe.data.source, VectorsSource | SpikedSource):
        raise UserError(
            "the run's heads learned from vectors: there is no picture to explain",
            where=str(run.checkpoint),
            remedy="explain a run on pictures",
        )


def _numbers(run: OpenedRun, spheres: str) -> tuple[int, ...]:
    """Understand ``--spheres``."""
    if not spheres:
        return ()
    if spheres == "all":
        geometry = run.model.geometry
        if not isinstance(geometry, Oblique):
            raise UserError(f"a geometry of kind {geometry.kind!r} has no pairs of spheres", where="--spheres")
        return tuple(range(geometry.num_spheres))
    parts = [part.strip() for part in spheres.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"not numbers between commas: {spheres!r}", where="--spheres", remedy="such as 0,3, or all")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _write(picture: Image.Image, out: Path, form: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        picture.save(temporary, form)


def _show(explanation: Explanation, run: OpenedRun) -> None:
    console = Console()
    average = ", averaged weights" if run.weights == "average" else ""
    table = Table(title=f"Similarity {explanation.full.score:.4f}, at step {run.step}{average}")
    table.add_column("word")
    table.add_column("weight", justify="right")
    for word, weight in zip(explanation.words, explanation.full.words, strict=True):
        table.add_row(escape(word), f"{weight:.2f}")
    console.print(table)
    if not explanation.spheres:
        return
    table = Table(title="Single pairs of spheres")
    table.add_column("sphere", justify="right")
    table.add_column("score", justify="right")
    table.add_column("strongest words", overflow="ellipsis", no_wrap=True)
    for number, part in explanation.spheres.items():
        strongest = sorted(zip(part.words, explanation.words, strict=True), key=lambda each: -each[0])[:STRONGEST]
        words = ", ".join(f"{word} {weight:.2f}" for weight, word in strongest if weight > 0)
        table.add_row(str(number), f"{part.score:.4f}", escape(words))
    console.print(table)
