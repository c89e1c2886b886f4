"""From task results and audits to what a report shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from troth.audit import similarity_histogram
from troth.errors import UserError
from troth.evaluate import TaskResult, compare, retrieval, zero_shot
from troth.geometry import Sphere
from troth.report import histogram_of, task_differences, task_estimates

SPHERE = Sphere()


def results(noise: float, labels: torch.Tensor | None = None) -> list[TaskResult]:
    generator = torch.Generator().manual_seed(0)
    text = SPHERE.project(torch.randn(40, 6, generator=generator))
    image = SPHERE.project(text + noise * torch.randn(40, 6, generator=generator))
    group = torch.arange(40)
    return [
        retrieval(image, text, group, group, SPHERE),
        zero_shot(image, group if labels is None else labels, text, SPHERE),
    ]


def test_every_metric_has_its_task_s_name_and_its_error() -> None:
    found = task_estimates(results(0.5))
    one = results(0.5)[0]
    assert found["retrieval/mean_recall"].value == one.metrics["mean_recall"]
    assert found["retrieval/mean_recall"].standard_error == one.standard_errors["mean_recall"]
    assert "zero-shot/top5" in found


def test_differences_are_paired_and_medians_have_none() -> None:
    worse, better = results(0.9), results(0.3)
    found = task_differences(worse, better)
    expected = compare(worse[1], better[1], "top1")
    assert found["zero-shot/top1"].value == expected.value > 0
    assert found["zero-shot/top1"].standard_error == expected.standard_error
    assert "retrieval/text_to_image/median_rank" not in found
    assert not [name for name in task_differences(worse[:1], better) if name.startswith("zero-shot")]
    with pytest.raises(UserError, match="different queries"):
        task_differences(worse, results(0.3, labels=torch.arange(40).flip(0)))


def test_a_histogram_keeps_its_counts() -> None:
    counts = similarity_histogram([0.1, 0.2, 0.9], np.array([True, False, False]), bins=4, limits=(0.0, 1.0))
    shown = histogram_of(counts)
    assert shown.edges == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert (shown.right, shown.wrong) == ((1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0))
