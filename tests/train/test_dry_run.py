"""A dry run counts, measures, and leaves the model as it was."""

import pytest
import torch

from tests.train.small import SmallStream, small_config, small_model
from troth.errors import NonFiniteLossError
from troth.objectives.infonce import InfoNCE
from troth.train import PartSize, dry_run


def test_a_dry_run_leaves_no_trace() -> None:
    model = small_model(dropout=0.1, bias=True)
    model.encoder.text_tower[0].requires_grad_(False)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    report = dry_run(model, InfoNCE(), SmallStream(), small_config(epochs=4))
    assert report.image_tower == PartSize(12 * 16 + 16 + 32 + 16 * 8 + 8, 12 * 16 + 16 + 32 + 16 * 8 + 8)
    assert report.text_tower == PartSize(10 * 16 + 16 + 16 * 8 + 8, 16 * 8 + 8)
    assert report.other == PartSize(2, 2)
    assert report.total_steps == 20
    assert report.total_seconds == pytest.approx(20 * report.step_seconds)
    assert 0 < report.step_seconds < 5
    assert report.peak_mib > 10
    assert (report.device, report.precision) == ("cpu", "float32")
    assert model.training
    assert not model.encoder.text_tower[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_a_dry_run_of_one_step() -> None:
    report = dry_run(small_model(), InfoNCE(), SmallStream(batch_size=40), small_config(epochs=1))
    assert report.total_steps == 1


def test_a_dry_run_meets_what_the_run_would_meet() -> None:
    stream = SmallStream(poison=int(SmallStream().indices(0)[0]))
    with pytest.raises(NonFiniteLossError, match="the loss of the first batches is not finite"):
        dry_run(small_model(), InfoNCE(), stream, small_config())
