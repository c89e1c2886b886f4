"""Diagnostics in words: what the page and the terminal both say."""

from __future__ import annotations

from typing import NamedTuple

from troth.evaluate.diagnostics import DataDiagnostics, Diagnostics, ScaleCourse
from troth.evaluate.distances import PAIR_KINDS, PairKind
from troth.evaluate.token_subsets import SubsetAccuracy

KIND_LABELS: dict[PairKind, str] = {
    "positive": "positive pairs",
    "negative": "negative pairs",
    "image_image": "two images",
    "text_text": "two captions",
}

_PLURALS = {**KIND_LABELS, "image_image": "pairs of images", "text_text": "pairs of captions"}
_CLOSER = "closer than the median positive"


class Row(NamedTuple):
    """A row of the table: a cell a data set.

    Attributes:
        group: the heading it stands under.
        label: what it is.
        hint: in a sentence, for whoever does not know.
        cells: ``(value, error)`` of each data set, the error empty where there is none.
    """

    group: str
    label: str
    hint: str
    cells: tuple[tuple[str, str], ...]


_MEASURES = {
    "modality_gap": ("modality gap", "How far the centres of images and captions are apart: from 0 to 2."),
    "alignment": ("alignment", "Mean squared distance of a pair’s two unit vectors: 0 is perfect, 2 is a right angle."),
    "image_uniformity": ("uniformity of images", "How evenly they are spread: 0 is one place, lower is more even."),
    "text_uniformity": ("uniformity of captions", "The same for captions."),
}


def rows(diagnostics: Diagnostics) -> tuple[Row, ...]:
    """Return the table of all data sets' numbers; what the geometry has not is left out."""
    data = diagnostics.data
    found = [
        Row(
            "Distance, mean ± standard deviation",
            KIND_LABELS[kind],
            "",
            tuple((number(d.distances.kinds[kind].mean), number(d.distances.kinds[kind].deviation)) for d in data),
        )
        for kind in PAIR_KINDS
    ]
    found += [
        Row(
            f"Share {_CLOSER}, %",
            KIND_LABELS[kind],
            "",
            tuple((f"{100 * d.distances.kinds[kind].closer:.2f}", "") for d in data),
        )
        for kind in PAIR_KINDS[1:]
    ]
    for name, (label, hint) in _MEASURES.items():
        if all(name in d.measures for d in data):
            found.append(Row("On unit vectors", label, hint, tuple((number(d.measures[name]), "") for d in data)))
    return tuple(found)


def number(value: float) -> str:
    """Return three decimals, with a true minus."""
    return f"{value:.3f}".replace("-", "−")


def scale_sentence(scale: ScaleCourse) -> str:
    """Return where the scale went, and when it kept still."""
    if not scale.scale:
        return "Nothing is known of the scale."
    course = f"From {scale.scale[0]:.4g} at step {scale.step[0]:,} to {scale.scale[-1]:.4g} at step {scale.step[-1]:,}"
    if not scale.learnable:
        return f"{course}; it was not trained."
    if scale.steps_per_epoch is None:
        return f"{course}; how long an epoch was is not known."
    if scale.converged is None:
        return f"{course}; its logarithm never kept within 2% for an epoch."
    kept = f"from step {scale.converged:,} on its logarithm kept within 2% for an epoch"
    if scale.settled is None:
        return f"{course}; {kept}, but it moved again later."
    if scale.settled == scale.converged:
        return f"{course}; {kept}, and for every later one."
    return f"{course}; {kept}, and from step {scale.settled:,} on for every later one."


def data_sentence(data: DataDiagnostics) -> str:
    """Return how many pairs were measured, and how the kinds stand to each other."""
    kinds = data.distances.kinds
    positive, negative = kinds["positive"], kinds["negative"]
    shares = ", ".join(f"{kinds[kind].closer:.2%} of {_PLURALS[kind]}" for kind in PAIR_KINDS[1:])
    return f"{positive.number:,} positive and {negative.number:,} negative pairs. {_CLOSER.capitalize()}: {shares}."


def subset_sentence(subsets: SubsetAccuracy) -> str:
    """Return what some of the spheres know, beside all of them and guessing."""
    accuracies = zip(subsets.sizes, subsets.mean, subsets.deviation, strict=True)
    parts = [f"{size}: {100 * mean:.1f} ± {100 * deviation:.1f}" for size, mean, deviation in accuracies]
    return (
        f"Top-1 in %, mean ± standard deviation over draws. {'; '.join(parts)}; guessing: {100 * subsets.chance:.1f}."
    )
