"""What a combination of settings reached, kept beside its run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from troth.data import atomic_path
from troth.errors import UserError

CANDIDATE_NAME = "candidate.json"


@dataclass(frozen=True)
class Candidate:
    """One combination of settings.

    Attributes:
        settings: ``field=value`` overrides of the method's recipe.
        mean_recall: of retrieval among the noisy pairs left out, captions as given, in percent.
        seconds: wall time of the training; None if it was taken up where it had stopped.
        pairs: the fingerprint of the noisy pairs.
    """

    settings: tuple[str, ...]
    mean_recall: float
    seconds: float | None
    pairs: str

    @classmethod
    def read(cls, path: Path) -> Candidate:
        """Read what :meth:`write` wrote. Raises UserError for another file."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return cls(**record | {"settings": tuple(record["settings"])})
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError("not a kept candidate", where=str(path), remedy="remove its folder") from None

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def public(self) -> dict[str, Any]:
        """Return what a selection says of it: all but the pairs, which are the same for all."""
        return {name: value for name, value in asdict(self).items() if name != "pairs"}


def kept_in(home: Path) -> Iterator[tuple[Path, Candidate]]:
    """Yield the folders of finished candidates under ``home``, and what they reached. Raises UserError as ``read``."""
    for path in sorted(home.glob(f"*/{CANDIDATE_NAME}")):
        yield path.parent, Candidate.read(path)
