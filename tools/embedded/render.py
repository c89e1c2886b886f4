"""Draw pictures into small WebP squares, in worker processes that a pathological file cannot hold up."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import resource
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import resvg_py
from PIL import Image, ImageChops

THUMBNAIL_SIDE = 24
LARGEST_PNG_PIXELS = 64_000_000
LARGEST_RENDER_PIXELS = 24_000_000
WORKER_MEMORY_BYTES = 4 << 30
WHITE = (255, 255, 255)
NEARLY_WHITE = 6  # a difference from white of at most this many grey levels is no ink


@dataclass(frozen=True, slots=True)
class Canvas:
    """How every picture of the data set is drawn."""

    side: int
    quality: int


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to draw.

    `crop` says what is kept: "page" the whole canvas, "alpha" what is not transparent, "ink" what is not
    white.
    `svg` is a file or the SVG text itself; `png` is used when there is no `svg` or it cannot be drawn.
    """

    key: str
    svg: Path | str | None
    png: Path | None
    crop: str
    margin: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn job: the WebP file, a thumbnail to compare pictures by, and the digest of the exact pixels."""

    webp: bytes
    thumbnail: bytes
    digest: str
    from_png: bool


class CannotDrawError(Exception):
    """The reason, in a few words, for which a picture is left out."""


def draw(job: Job, canvas: Canvas) -> Picture:
    """Draw one job, falling back from its SVG to its PNG."""
    reason = "no source"
    if job.svg is not None:
        try:
            return _finish(_rasterise_svg(job.svg, job.crop, 2 * canvas.side), job, canvas, from_png=False)
        except (ValueError, CannotDrawError) as error:
            reason = str(error) if isinstance(error, CannotDrawError) else "svg unreadable"
    if job.png is not None:
        return _finish(_open_png(job.png), job, canvas, from_png=True)
    raise CannotDrawError(reason)


def _finish(image: Image.Image, job: Job, canvas: Canvas, *, from_png: bool) -> Picture:
    square = _fit(_on_white(image, job.crop), canvas.side, job.margin)
    if _ink_box(square) is None:
        raise CannotDrawError("blank")
    buffer = io.BytesIO()
    square.save(buffer, "WEBP", quality=canvas.quality, method=6)
    thumbnail = square.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()
    return Picture(buffer.getvalue(), thumbnail, hashlib.sha256(square.tobytes()).hexdigest(), from_png)


def _render(svg: Path | str, width: int) -> Image.Image:
    """Render without the fonts of this machine, so that the same bytes come out everywhere."""
    path, text = (str(svg), None) if isinstance(svg, Path) else (None, svg)
    png = resvg_py.svg_to_bytes(text, path, width=width, dpi=96.0, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _rasterise_svg(svg: Path | str, crop: str, side: int) -> Image.Image:
    """Render an SVG so that what will be kept of it is at least about `side` pixels long."""
    image = _render(svg, side)
    box = _kept_box(image, crop)
    if box is None:
        raise CannotDrawError("blank")
    kept = max(box[2] - box[0], box[3] - box[1])
    largest = (LARGEST_RENDER_PIXELS / (image.width * image.height)) ** 0.5
    scale = min(side / kept, largest, 32.0)
    return image if 0.9 < scale <= 1.0 else _render(svg, max(1, round(image.width * scale)))


def _open_png(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                if image.width * image.height > LARGEST_PNG_PIXELS:
                    raise CannotDrawError("png too large")
                return image.convert("RGBA")
        except OSError as error:
            raise CannotDrawError("png unreadable") from error


def _composite(image: Image.Image) -> Image.Image:
    page = Image.new("RGBA", image.size, (*WHITE, 255))
    return Image.alpha_composite(page, image).convert("RGB")


def _ink_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    difference = ImageChops.difference(image, Image.new("RGB", image.size, WHITE)).split()
    strongest = ImageChops.lighter(ImageChops.lighter(difference[0], difference[1]), difference[2])
    return strongest.point(lambda level: 255 if level > NEARLY_WHITE else 0).getbbox()


def _kept_box(image: Image.Image, crop: str) -> tuple[int, int, int, int] | None:
    if crop == "ink":
        return _ink_box(_composite(image))
    if crop == "alpha":
        return image.getchannel("A").getbbox()
    return (0, 0, image.width, image.height)


def _on_white(image: Image.Image, crop: str) -> Image.Image:
    box = _kept_box(image, crop)
    if box is None:
        raise CannotDrawError("blank")
    return _composite(image.crop(box))


def _fit(image: Image.Image, side: int, margin: int) -> Image.Image:
    """Centre the picture in a white square, its proportions kept (a line stays at least one pixel thick)."""
    room = side - 2 * margin
    scale = room / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), WHITE)
    small = image.resize(size, Image.Resampling.LANCZOS)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _work(connection: Connection, canvas: Canvas) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))
    while (job := connection.recv()) is not None:
        try:
            connection.send(draw(job, canvas))
        except CannotDrawError as error:
            connection.send(str(error))
        except MemoryError:
            connection.send("too much memory")


class _Worker:
    """One process that draws one job at a time."""

    def __init__(self, canvas: Canvas) -> None:
        self.job: Job | None = None
        self.deadline = 0.0
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, canvas), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, job: Job, timeout: float) -> None:
        self.job, self.deadline = job, time.monotonic() + timeout
        self.connection.send(job)

    def answer(self) -> Picture | str | None:
        """The outcome, if there is one by now; a worker that died has crashed."""
        if self.connection.poll():
            try:
                outcome: Picture | str = self.connection.recv()
                return outcome
            except (EOFError, ConnectionError):
                return "crashed"
        return "timeout" if time.monotonic() > self.deadline else None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def draw_all(jobs: Iterable[Job], canvas: Canvas, workers: int, timeout: float) -> Iterator[tuple[Job, Picture | str]]:
    """Draw all jobs; yields each with its picture, or with the reason why there is none, as they are done."""
    waiting = list(jobs)[::-1]
    team = [_Worker(canvas) for _ in range(workers)]
    try:
        while waiting or any(worker.job for worker in team):
            for worker in team:
                if worker.job is None and waiting:
                    worker.give(waiting.pop(), timeout)
            wait([worker.connection for worker in team if worker.job], timeout=1.0)
            for place, worker in enumerate(team):
                outcome = worker.answer() if worker.job else None
                if worker.job is None or outcome is None:
                    continue
                job, worker.job = worker.job, None
                if outcome in ("timeout", "crashed"):
                    worker.stop()
                    team[place] = _Worker(canvas)
                    if job.svg is not None and job.png is not None:
                        waiting.append(replace(job, svg=None))
                        continue
                yield job, outcome
    finally:
        for worker in team:
            worker.stop()
