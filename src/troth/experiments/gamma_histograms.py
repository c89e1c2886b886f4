"""What posterior Gamma weights look like, for the priors of the published ablation."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from troth.experiments.base import COLOURS, Experiment, new_figure, plain_axes
from troth.experiments.table import Table, markdown
from troth.objectives import GammaWeights
from troth.similarity import Block, Pairs
from troth.state import State
from troth.theory import SpikedModel, Training, first_encoders, train_paired

#: Prior shapes of the negatives' weights; the positives' is 5, all rates are 0.
A_MINUS = (1.0, 5.0, 10.0, 20.0)
COUNT, SCALE = 256, 14.3
READINGS = ("cosine", "logits")
#: Histograms are over the logarithm to base 10.
BINS = np.linspace(-12, 3, 151)
KINDS = ("positives", "negatives")


def compute(seeds: int) -> Table:
    """Draw weights for batches of trained embeddings, over their row's mean, and count them by size."""
    counts: dict[tuple[str, float, str], np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    for seed in range(seeds):
        image, text = embedded(seed)
        for reading in READINGS:
            for a_minus in A_MINUS:
                weights = drawn(GammaWeights(similarity=reading, a_minus=a_minus), image, text)  # type: ignore[arg-type]
                own = torch.eye(COUNT, dtype=torch.bool)
                for kind, values in zip(KINDS, (weights[own], weights[~own]), strict=True):
                    # What lies outside all bins is counted in the outermost.
                    found = np.histogram(np.clip(values.numpy(), BINS[0], BINS[-1]), BINS)[0]
                    key = (reading, a_minus, kind)
                    counts[key] = counts.get(key, 0) + found
    middles = 0.5 * (BINS[:-1] + BINS[1:])
    rows = [
        (reading, a_minus, kind, float(middle), float(share))
        for (reading, a_minus, kind), found in counts.items()
        for middle, share in zip(middles, found / found.sum(), strict=True)
    ]
    return Table(("similarity", "a_minus", "kind", "log10 weight", "share"), tuple(rows))


def embedded(seed: int) -> tuple[Tensor, Tensor]:
    """Return unit embeddings of ``COUNT`` fresh pairs of the spiked model, by encoders trained on 300."""
    model = SpikedModel(seed=seed)
    pairs, fresh = model.sample(300), model.sample(COUNT, draw=1)
    first = first_encoders(1, model.rank, model.image_dim, model.text_dim, seed=seed)
    encoders, _ = train_paired(first, pairs.x.float()[None], pairs.y.float()[None], Training())
    image, text = fresh.x @ encoders.image[0].double().mT, fresh.y @ encoders.text[0].double().mT
    return torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(text, dim=-1)


def drawn(objective: GammaWeights, image: Tensor, text: Tensor) -> Tensor:
    """Return log10 of the weights of image rows, ``(n, n)``, over each row's mean weight."""
    scale = torch.tensor(SCALE, dtype=torch.float64)
    pairs = Pairs(image, text, scale=scale, index=torch.arange(len(image)))
    weights = objective.log_weights(pairs, State(len(image), fingerprint="histograms"))
    cosines, everything = image @ text.mT, slice(0, len(image))
    block = Block(everything, everything, 0, cosines, scale * cosines, weights.inputs, weights.inputs)
    log, _ = weights(block)
    return (log - torch.logsumexp(log, dim=1, keepdim=True) + math.log(len(image))) / math.log(10)


def draw(table: Table) -> Figure:
    """Draw the histograms of both readings, positives and negatives."""
    figure = new_figure(9.0, 5.6)
    panels = figure.subplots(2, 2, sharex="row")
    for row, reading in zip(panels, READINGS, strict=True):
        for axes, kind in zip(row, KINDS, strict=True):
            for a_minus, colour in zip(A_MINUS, COLOURS, strict=False):
                kept = table.where(similarity=reading, a_minus=a_minus, kind=kind)
                axes.step(
                    kept.numbers("log10 weight"),
                    kept.numbers("share"),
                    where="mid",
                    color=colour,
                    linewidth=1.3,
                    label=f"a₋ = {a_minus:g}",
                )
            axes.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
            axes.set_title(f"{kind}, s = exp({'cos' if reading == 'cosine' else 'scale · cos'})", fontsize=10)
            axes.set(xlim=(-2, 1.5) if reading == "cosine" else (-12, 3))
            plain_axes(axes)
        row[0].set_ylabel("share of weights")
    for axes in panels[1]:
        axes.set_xlabel("log₁₀ of the weight over its row's mean")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=len(A_MINUS), fontsize=9)
    return figure


def share_near_one(table: Table, factor: float = 2.0, **values: str | float) -> float:
    """Return the share of weights within a factor of their row's mean."""
    kept, most = table.where(**values), np.log10(factor)
    pairs = zip(kept.numbers("log10 weight"), kept.numbers("share"), strict=True)
    return sum(share for place, share in pairs if abs(place) <= most)


def tabulate(table: Table) -> str:
    """Write which share of the weights lies within a factor of two of its row's mean."""
    rows = [
        [f"{reading}, {kind}"]
        + [f"{share_near_one(table, similarity=reading, kind=kind, a_minus=a_minus):.0%}" for a_minus in A_MINUS]
        for reading in READINGS
        for kind in KINDS
    ]
    return markdown(["within a factor of 2 of the row's mean", *(f"a₋ = {a_minus:g}" for a_minus in A_MINUS)], rows)


EXPERIMENT = Experiment("gamma-histograms", "posterior Gamma weights for four priors", compute, draw, tabulate, seeds=5)
