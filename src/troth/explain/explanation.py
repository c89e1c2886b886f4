"""What an explanation holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8

from troth.data import atomic_path

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """What one score rests on.

    Attributes:
        score: the score: a similarity, or one sphere's part of it.
        image: ``(H, W)`` in [0, 1] over the picture.
        words: ``(W,)`` in [0, 1], one a word.
        cell_strength: ``(h, w)`` of the patches or cells that ``image`` is spread from, before it was stretched to
            [0, 1]: not negative, in the score's unit.
        word_strength: ``(W,)`` before it was divided by the largest.
    """

    score: float
    image: Float[FloatArray, "H W"]
    words: Float[FloatArray, " W"]
    cell_strength: Float[FloatArray, "h w"]
    word_strength: Float[FloatArray, " W"]


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A picture and a caption under a model.

    Attributes:
        picture: ``(H, W, 3)`` what the image tower saw: resized and cut as it needs, in bytes.
        words: the caption's words as the text tower read them.
        full: of the geometry's similarity.
        spheres: of single pairs of spheres, by number.
    """

    picture: UInt8[npt.NDArray[np.uint8], "H W 3"]
    words: tuple[str, ...]
    full: Importance
    spheres: dict[int, Importance] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, Importance]]:
        """Return every importance with its name: ``similarity``, then ``sphere k``."""
        return [("similarity", self.full), *((f"sphere {k}", part) for k, part in self.spheres.items())]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return everything by name; the first row of scores, maps and weights is the full score's.

        ``picture (H, W, 3)``, ``words (W,)``, ``sphere (R,)`` (-1 for the full score), ``score (R,)``,
        ``image (R, H, W)``, ``word_weight (R, W)``, ``cell_strength (R, h, w)``, ``word_strength (R, W)``.
        """
        parts = [part for _, part in self.rows()]
        return {
            "picture": self.picture,
            "words": np.array(self.words),
            "sphere": np.array([-1, *self.spheres], dtype=np.int64),
            "score": np.array([part.score for part in parts]),
            "image": np.stack([part.image for part in parts]).astype(np.float32),
            "word_weight": np.stack([part.words for part in parts]),
            "cell_strength": np.stack([part.cell_strength for part in parts]),
            "word_strength": np.stack([part.word_strength for part in parts]),
        }

    def save(self, path: Path) -> None:
        """Write :meth:`arrays` as a compressed ``.npz`` file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **self.arrays())
