"""Gradient descent on the way to the spectral solution."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from troth.experiments.base import COLOURS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, by_method
from troth.theory import ContrastiveLoss, LinearEncoders, SpikedModel, fit_gradient_descent, fit_spectral

COUNT, NOISE = 200, 0.4
STEPS, EVERY = 400, 10
#: Learning rates, as fractions of 1 / ||S||.
RATES = (0.05, 0.1, 0.2, 0.4)
MEMBERS = {
    "linear": ContrastiveLoss.linear(),
    "InfoNCE, τ = 20": ContrastiveLoss.infonce(20.0),
    "InfoNCE, τ = 10": ContrastiveLoss.infonce(10.0),
    "logistic, τ = 10": ContrastiveLoss.logistic(10.0),
}
MEMBER_RATE = 0.2


def compute(seeds: int) -> Table:
    """Measure the distance from the member's own spectral solution, relative to that solution, after every step."""
    rows: list[tuple[str | float, ...]] = []
    for seed in range(seeds):
        model = SpikedModel(noise=NOISE, seed=seed)
        for rate in RATES:
            name = f"linear, rate {rate:g} / ‖S‖"
            rows += _distances(model, MEMBERS["linear"], rate, name, seed)
        for name, loss in MEMBERS.items():
            if name != "linear":
                rows += _distances(model, loss, MEMBER_RATE, name, seed)
    return Table(("seed", "step", "method", "distance"), tuple(rows))


def _distances(
    model: SpikedModel, loss: ContrastiveLoss, rate: float, name: str, seed: int
) -> list[tuple[str | float, ...]]:
    sample = model.sample(COUNT)
    goal = fit_spectral(sample.x, sample.y, loss, model.rank).encoders.product
    # rho = 1, and S there has the norm of the solution.
    learning_rate = rate / float(torch.linalg.matrix_norm(goal, 2))
    start = LinearEncoders.random(model.rank, model.image_dim, model.text_dim, seed=seed)

    def distance(encoders: LinearEncoders) -> float:
        return float(torch.dist(encoders.product, goal) / torch.linalg.matrix_norm(goal))

    trace = fit_gradient_descent(
        sample.x, sample.y, loss, start, learning_rate=learning_rate, steps=STEPS, measure=distance
    ).trace
    return [(float(seed), float(step), name, trace[step]) for step in range(0, STEPS + 1, EVERY)]


def draw(table: Table) -> Figure:
    """Draw the distance against the number of steps."""
    figure = new_figure(9.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    methods = [str(method) for method in table.distinct("method")]
    linear = [method for method in methods if method.startswith("linear")]
    middle = f"linear, rate {MEMBER_RATE:g} / ‖S‖"
    for axes, shown in ((left, linear), (right, [middle, *(each for each in methods if each not in linear)])):
        for method, colour in zip(shown, COLOURS, strict=False):
            for seed in table.distinct("seed"):
                kept = table.where(method=method, seed=seed)
                label = method if seed == 0 else None
                axes.semilogy(kept.numbers("step"), kept.numbers("distance"), color=colour, linewidth=1.2, label=label)
        axes.set(xlabel="steps of gradient descent")
        plain_axes(axes)
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    left.set(ylabel=r"$\|G_1^T G_2 - M\|_F / \|M\|_F$", ylim=(1e-12, 3))
    left.set_title("linear member", fontsize=10)
    right.set_title(f"members, rate {MEMBER_RATE:g} / ‖S‖", fontsize=10)
    return figure


EXPERIMENT = Experiment(
    "convergence",
    "gradient descent on the way to the spectral solution",
    compute,
    draw,
    lambda table: by_method(
        table, "step", "distance", lambda mean: f"{mean.value:.1e}", (0.0, 50.0, 100.0, 200.0, 400.0)
    ),
    seeds=3,
)
