"""From names in a source's metadata to labels: pure functions on lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from troth.errors import UserError


@dataclass(frozen=True)
class ConceptLabels:
    """Which class each sample belongs to.

    Attributes:
        labels: ``(Q,)`` rows of ``class_names``.
        class_names: the classes, each once.
    """

    labels: Int64[Tensor, " Q"]
    class_names: tuple[str, ...]


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple, checked to be unique and not empty.

    Two classes of one name cannot be told apart, and silently merging them would change the accuracy.

    Raises:
        UserError: naming the duplicates.
    """
    names = tuple(class_names)
    if not names:
        raise UserError("no class names", where="class_names", remedy="give at least one")
    if any(not name.strip() for name in names):
        raise UserError(
            f"class {next(i for i, n in enumerate(names) if not n.strip())} has an empty name",
            where="class_names",
        )
    repeated = [f"{name!r} ({count} times)" for name, count in Counter(names).items() if count > 1]
    if repeated:
        more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
        raise UserError(
            f"class names must be unique, found {', '.join(repeated[:5])}{more}",
            where="class_names",
            remedy="rename or merge them",
        )
    return names


def concept_labels(concepts: Sequence[str | None], class_names: Sequence[str] | None = None) -> ConceptLabels:
    """Number each sample's concept.

    Args:
        concepts: each sample's concept name, e.g. a source's ``category(index)``.
        class_names: the classes in the order wanted; the sorted names found in ``concepts`` if None.

    Raises:
        UserError: for a sample without a concept, a concept that is not a class, and duplicate class names.
    """
    missing = [position for position, concept in enumerate(concepts) if not concept]
    if missing:
        raise UserError(
            f"{len(missing)} samples have no concept name, first: sample {missing[0]}",
            where="concepts",
            remedy="leave them out of this test",
        )
    named = [concept for concept in concepts if concept]
    names = check_class_names(sorted(set(named)) if class_names is None else class_names)
    row = {name: position for position, name in enumerate(names)}
    unknown = sorted(set(named) - set(row))
    if unknown:
        raise UserError(
            f"{len(unknown)} concepts are not among the {len(names)} classes, first: {unknown[0]!r}",
            where="concepts",
            remedy="add them to the class names",
        )
    return ConceptLabels(torch.tensor([row[concept] for concept in named], dtype=torch.int64), names)
