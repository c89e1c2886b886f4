"""Read every sample once, before training does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from troth.data.images import decode
from troth.data.ledger import Ledger, SampleError
from troth.data.source import Source
from troth.data.vectors import carries_vectors


def check_source(
    source: Source,
    transform: Callable[[bytes], Any] = decode,
    progress: Callable[[int], None] | None = None,
) -> Ledger:
    """Decode every image of a source; a source of vectors has nothing to decode.

    Args:
        source: the source; its own ledger is included in the result.
        transform: what is done to the bytes; by default they are decoded at full size.
        progress: called after every sample with how many are done.

    Returns:
        Everything that cannot be used, with its reason. The source's ledger is not changed.
    """
    ledger = Ledger(source.ledger)
    if carries_vectors(source):
        return ledger  # they were checked when the source was opened
    for index in range(len(source)):
        try:
            transform(source.read_image(index))
        except SampleError as error:
            ledger.add(error.entry(source.key(index)))
        if progress is not None:
            progress(index + 1)
    return ledger
