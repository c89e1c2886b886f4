"""Small pictures beside the page."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from troth.data.files import atomic_path

#: Longest side. Shown at half of it at most, so that they stay sharp on dense screens.
SIDE = 192

#: Pictures above this many pixels are not opened: a saved result may come from anywhere.
_MAX_PIXELS = 64_000_000

_OURS = re.compile(r"[0-9a-f]{16}\.webp")


def write_thumbnails(images: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """Write every readable picture as a small webp named by its content, and remove those of an earlier report.

    Args:
        images: name to encoded bytes.
        folder: made if missing; only files named as ours are ever removed from it.

    Returns:
        picture name to file name; a picture that cannot be read is missing from it.
    """
    files: dict[str, str] = {}
    for name, data in images.items():
        thumbnail = _shrink(data)
        if thumbnail is None:
            continue
        files[name] = f"{hashlib.sha256(thumbnail).hexdigest()[:16]}.webp"
        with atomic_path(folder / files[name]) as temporary:
            temporary.write_bytes(thumbnail)
    if folder.is_dir():
        for old in folder.iterdir():
            if _OURS.fullmatch(old.name) and old.name not in files.values():
                old.unlink()
    return files


def _shrink(data: bytes) -> bytes | None:
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > _MAX_PIXELS:
                    return None
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                rgba = image.convert("RGBA")
        rgba.thumbnail((SIDE, SIDE))
        white = Image.new("RGBA", rgba.size, "white")
        Image.alpha_composite(white, rgba).convert("RGB").save(buffer, "webp", quality=82, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return buffer.getvalue()
