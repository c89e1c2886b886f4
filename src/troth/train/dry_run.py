"""What a run would need, found out by making two of its steps."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from troth.data.loader import BatchStream, LoadedBatch
from troth.data.unpaired import UnpairedStream
from troth.encoders.contrastive import ContrastiveModel
from troth.errors import NonFiniteLossError
from troth.objectives.base import Objective
from troth.state import Clock, State
from troth.train.config import TrainConfig
from troth.train.detection import Detection, UnpairedConfig
from troth.train.episodes import Episodes
from troth.train.step import NonFiniteStepError, StepReport
from troth.types import Batch


@dataclass(frozen=True)
class PartSize:
    """How many parameters a part of the model has.

    Attributes:
        total: all of them.
        trainable: those that learn.
    """

    total: int
    trainable: int


@dataclass(frozen=True)
class DryRunReport:
    """What a run would need.

    Attributes:
        image_tower: parameters that image embeddings depend on, and text embeddings do not.
        text_tower: parameters that text embeddings depend on, and image embeddings do not.
        other: shared parameters, scale and bias, prototype heads.
        device: where the run would compute.
        precision: what the towers would compute in.
        total_steps: how many steps the run has.
        step_seconds: one step, including the wait for its batch.
        peak_mib: the highest memory use so far, MiB: of the GPU if there is one, else of this process.
        total_seconds: estimate for all steps, without evaluation, checkpoints, and the encoding and clustering of
            episodes.
        loss: of the first batch, nats; where it learns prototypes, they are zeros.
        samples_per_second: pairs a second, over all ranks.
    """

    image_tower: PartSize
    text_tower: PartSize
    other: PartSize
    device: str
    precision: str
    total_steps: int
    step_seconds: float
    peak_mib: float
    total_seconds: float
    loss: float
    samples_per_second: float


def dry_run(
    model: ContrastiveModel,
    objective: Objective,
    stream: BatchStream,
    config: TrainConfig,
    *,
    seed: int = 0,
    unpaired: UnpairedConfig | None = None,
    episodes: Episodes | None = None,
) -> DryRunReport:
    """Make two steps with a learning rate of zero, the second one timed, and extrapolate.

    The weights stay as they are; running averages of BatchNorm move. Nothing is written. A run with unpaired data makes
    its steps in each of its two stages, and the time of all steps is the sum of the stages'. Of a run in episodes they
    are steps with prototypes, whatever the first episodes learn; nothing is encoded or clustered.

    Raises:
        NonFiniteLossError: if the loss or gradient of the first batches is not finite.
    """
    state = State(stream.num_samples, stream.fingerprint)
    objective.prepare(state)
    if episodes is not None:
        episodes.declare(state)
    beginning = 0 if episodes is None else episodes.rehearsal_step
    make_step = config.step_maker(model, objective, state, seed, stream, episodes)
    total_steps = config.total_steps(stream)
    device = next(model.parameters()).device
    model.train()
    first_stage = objective_steps = total_steps
    if isinstance(stream, UnpairedStream):
        first_stage, objective_steps = stream.paired_steps, stream.steps_with_pairs
    later_seconds = 0.0

    def two_steps(start: int, stop: int) -> tuple[LoadedBatch, StepReport, float]:
        batches = iter(stream.batches(start, min(start + 2, stop)))
        first = next(batches)
        state.clock = Clock(seed, start, stream.steps_per_epoch, objective_steps)
        report = make_step(first, start, 0.0)
        state.clock = replace(state.clock, step=min(start + 1, stop - 1))
        started = time.perf_counter()
        make_step(next(batches, first), start if episodes is not None else start + 1, 0.0)
        return first, report, time.perf_counter() - started

    try:
        first, report, seconds = two_steps(beginning, first_stage)
        if unpaired is not None:
            make_step.detection = Detection(
                unpaired, model, micro_batch_size=make_step.micro_batch_size, precision=make_step.precision
            )
            later_seconds = two_steps(first_stage, total_steps)[2] * (total_steps - first_stage)
    except NonFiniteStepError as error:
        raise NonFiniteLossError(f"the {error.what} of the first batches is not finite") from error
    peak = _peak_mib(device)
    make_step.optimizer.zero_grad(set_to_none=True)
    image, text, other = part_sizes(model, first.batch.slice(0, 2).to(device))
    return DryRunReport(
        image_tower=image,
        text_tower=text,
        other=other,
        device=str(device),
        precision=str(make_step.precision or next(model.parameters()).dtype).removeprefix("torch."),
        total_steps=total_steps,
        step_seconds=seconds,
        peak_mib=peak,
        total_seconds=seconds * first_stage + later_seconds,
        loss=report.loss,
        samples_per_second=stream.batch_size / seconds,
    )


def part_sizes(model: ContrastiveModel, batch: Batch) -> tuple[PartSize, PartSize, PartSize]:
    """Return the sizes of the image tower, the text tower and the rest.

    A parameter belongs to the tower whose embeddings have a gradient with respect to it: this holds for any
    architecture, whatever its parts are called.
    """
    parameters = list(model.parameters())
    learns = [parameter.requires_grad for parameter in parameters]
    training = model.training
    model.eval()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        image = _reached(model.embed_image(batch.image), parameters)
        text = _reached(model.embed_text(batch.text), parameters)
    finally:
        for parameter, flag in zip(parameters, learns, strict=True):
            parameter.requires_grad_(flag)
        model.train(training)
    only_image, only_text = image - text, text - image
    rest = set(range(len(parameters))) - only_image - only_text
    image_size, text_size, other_size = (_size(parameters, part) for part in (only_image, only_text, rest))
    return image_size, text_size, other_size


def _reached(embeddings: Tensor, parameters: list[nn.Parameter]) -> set[int]:
    gradients = torch.autograd.grad(embeddings.sum(), parameters, allow_unused=True)
    return {number for number, gradient in enumerate(gradients) if gradient is not None}


def _size(parameters: list[nn.Parameter], numbers: Iterable[int]) -> PartSize:
    part = [parameters[number] for number in numbers]
    return PartSize(
        total=sum(parameter.numel() for parameter in part),
        trainable=sum(parameter.numel() for parameter in part if parameter.requires_grad),
    )


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
