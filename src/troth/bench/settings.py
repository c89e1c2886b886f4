"""Noise settings by their names: ``uniform-40`` moves 40 percent of the captions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from troth.errors import UserError

Kind = Literal["uniform", "same-category", "foreign"]

_NAME = re.compile(r"(uniform|same-category|foreign)-(\d{1,2})")
#: The part of the pairs that settings with foreign captions train on; the rest is where the captions come from.
FOREIGN_PART = 0.7


@dataclass(frozen=True)
class Setting:
    """Which captions are wrong, and how many.

    Attributes:
        kind: where they come from, as ``partners`` of :class:`troth.data.Noise` says it.
        percent: how many of the pairs get a wrong one, 0 to 99.
    """

    kind: Kind
    percent: int

    @classmethod
    def parse(cls, name: str) -> Setting:
        """Return the setting of a name such as ``foreign-40``; ``clean`` is ``uniform-0``.

        Raises:
            UserError: for another name, or a rate that the setting cannot have.
        """
        match = _NAME.fullmatch("uniform-0" if name == "clean" else name)
        if match is None:
            raise UserError(
                "no such noise", where=f"--noise {name}", remedy="KIND-PERCENT, such as uniform-40, or clean"
            )
        found = cls(cast("Kind", match.group(1)), int(match.group(2)))
        if found.kind == "same-category" and not found.percent:
            raise UserError("it is the same as uniform-0", where=f"--noise {name}", remedy="use uniform-0")
        limit = (1 - FOREIGN_PART) / FOREIGN_PART
        if found.kind == "foreign" and found.rate > limit - 0.02:  # parts are cut by chance
            raise UserError(
                f"the reserve has captions for {limit:.0%} of the pairs at most",
                where=f"--noise {name}",
                remedy="use foreign-40 or less",
            )
        return found

    @property
    def name(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.kind}-{self.percent}"

    @property
    def rate(self) -> float:
        """The share of the pairs whose caption is moved."""
        return self.percent / 100

    @property
    def clean(self) -> Setting:
        """The same pairs without wrong captions."""
        return replace(self, kind="foreign" if self.kind == "foreign" else "uniform", percent=0)


#: What is run if nothing else is asked for.
SETTINGS = tuple(
    Setting.parse(name)
    for name in (
        "uniform-0",
        "uniform-40",
        "uniform-20",
        "uniform-60",
        "same-category-40",
        "same-category-20",
        "foreign-0",
        "foreign-40",
        "foreign-20",
    )
)


@dataclass(frozen=True)
class Place:
    """Where the data of one setting and seed are kept, under one folder for all.

    Attributes:
        root: the yardstick's folder.
        setting: the noise.
        seed: that it was drawn with.
    """

    root: Path
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Of the setting with this seed."""
        return f"{self.setting.name}-seed{self.seed}"

    @property
    def pairs(self) -> Path:
        """The pairs as given: pictures, and nobody's captions but the given ones."""
        return self.root / "data" / self.name / "pairs.tar"

    @property
    def right(self) -> Path:
        """Only the pairs that are not wrong. Beside the others they would give the answers away, so they lie apart."""
        return self.root / ORACLE / self.name / "right.tar"

    @property
    def answers(self) -> Path:
        """Whose captions each pair was given: a saved :class:`troth.data.CaptionAssignment`."""
        return self.root / ANSWERS / f"{self.name}.npz"


#: Folders that trainings on the given pairs may not read.
ANSWERS, ORACLE = "answers", "oracle"
