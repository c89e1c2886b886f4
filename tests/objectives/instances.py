"""The objectives, with the settings that change their arithmetic, as the conformance tests go through them."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.objectives.clusters import prototypes_of
from tests.references.case import Case
from troth.geometry import FILIP, Euclidean, Geometry, Oblique
from troth.objectives import (
    MMCL,
    Affinity,
    CleanPosterior,
    CyCLIP,
    DeCL,
    Distillation,
    ExternalPrototypes,
    FeatureDistillation,
    GammaWeights,
    GeneralizedCE,
    GivenWeights,
    GlobalInfoNCE,
    InfoNCE,
    Mimic,
    NoiseMixture,
    Objective,
    Prototypes,
    Reweighted,
    SelfDistillation,
    Sigmoid,
    SoftTargets,
    Sum,
)
from troth.similarity import DenseMatches, Pairs, TwoWay
from troth.state import Clock, State


@dataclass(frozen=True)
class Instance:
    """An objective, and which laws hold for it.

    Attributes:
        objective: configured.
        symmetric: swapping the modalities keeps the losses.
        non_negative: no loss is below zero.
        exact_slope: the gradient is the derivative of the value: nothing is held fixed on the way.
        prefers_right: batches of right pairs cost less than shuffled ones.
        smooth: no kinks, so that finite differences can check the slope.
    """

    objective: Objective
    symmetric: bool = True
    non_negative: bool = True
    exact_slope: bool = True
    prefers_right: bool = True
    smooth: bool = True


def _random(objective: Objective) -> Instance:
    return Instance(objective, symmetric=False, exact_slope=False)


def _fixed(objective: Objective, **laws: bool) -> Instance:
    return Instance(objective, exact_slope=False, **laws)


def _clustered(objective: Objective) -> Instance:
    # The clusters are made of the batch: those of wrong pairs are as good as those of right ones (test_prototypes.py).
    return Instance(objective, prefers_right=False)


#: List an objective here and it is held to everything in test_conformance.py and test_distributed.py.
INSTANCES: dict[str, Instance] = {
    "infonce": Instance(InfoNCE()),
    "infonce, positives": Instance(InfoNCE(known_matches="positive"), prefers_right=False),
    "infonce, ignored": Instance(InfoNCE(known_matches="ignore")),
    "infonce, smoothed": Instance(InfoNCE(label_smoothing=0.2)),
    "infonce, ignored, smoothed": Instance(InfoNCE(known_matches="ignore", label_smoothing=0.2)),
    "sigmoid": Instance(Sigmoid()),
    "sigmoid, positives": Instance(Sigmoid(known_matches="positive", label_smoothing=0.1), prefers_right=False),
    "sigmoid, ignored": Instance(Sigmoid(known_matches="ignore")),
    "generalized_ce": Instance(GeneralizedCE()),
    "noise_mixture": Instance(NoiseMixture()),
    "noise_mixture, learnt": Instance(NoiseMixture(learn=True)),
    "mmcl, linear": Instance(MMCL(), non_negative=False),
    "mmcl, infonce": Instance(MMCL.infonce()),
    "mmcl, odd": Instance(MMCL(phi="log", psi="exp", nu=0.7, eps=0.3), non_negative=False, prefers_right=False),
    "mmcl, logistic": Instance(MMCL(psi="softplus", nu=0.8, eps=0.5)),
    "mmcl, hinge": Instance(MMCL(psi="hinge"), smooth=False),
    "decl": Instance(DeCL(), symmetric=False, non_negative=False, exact_slope=False),
    "decl, mean": _fixed(DeCL(draw="mean", b_u=0.5, keep=0.5), non_negative=False),
    "global_infonce": _fixed(GlobalInfoNCE(), non_negative=False),
    "global_infonce, long memory": _fixed(GlobalInfoNCE(keep=0.9), non_negative=False),
    "soft_targets": _fixed(SoftTargets()),
    "self_distillation": _fixed(SelfDistillation()),
    "self_distillation, own": _fixed(SelfDistillation(targets="own", sharpness=2.0, schedule="constant")),
    "distillation": Instance(Distillation(sharpness=5.0), symmetric=False, prefers_right=False),
    "feature_distillation": Instance(FeatureDistillation(), symmetric=False, prefers_right=False),
    "gamma_weights": _random(GammaWeights()),
    "gamma_weights, literal": Instance(
        GammaWeights(similarity="logits"), symmetric=False, exact_slope=False, prefers_right=False
    ),
    "gamma_weights, rates": _random(GammaWeights(b_plus=0.7, b_minus=0.3, b_u=0.2, a_minus=0.6)),
    "gamma_weights, memory": _random(GammaWeights(similarity="logits", b_minus=1.0, sweeps=3, keep=0.5)),
    "gamma_weights, shared": _random(GammaWeights(shared=True)),
    "gamma_weights, means": _fixed(GammaWeights(draw="mean", b_plus=0.5, b_minus=0.5)),
    "affinity": Instance(Affinity(), prefers_right=False, smooth=False),
    "affinity, mask": Instance(
        Affinity(strategy="mask", threshold=0.5, reduction="row"), prefers_right=False, smooth=False
    ),
    "affinity, l2": Instance(Affinity(distance="l2"), prefers_right=False),
    "affinity, pearson": Instance(Affinity(distance="pearson", strategy="ramp"), prefers_right=False),
    "mimic": Instance(Mimic(), symmetric=False, prefers_right=False, smooth=False),
    "mimic, pearson": Instance(Mimic(distance="pearson"), symmetric=False, prefers_right=False),
    "cyclip": Instance(CyCLIP(), prefers_right=False),
    "prototypes": _clustered(Prototypes()),
    "prototypes, soft": _clustered(Prototypes(target_temperature=0.3)),
    "prototypes, hard": _clustered(Prototypes(target_temperature=None)),
    "prototypes, not translated": _clustered(Prototypes(target_temperature=0.3, back_translation=False)),
    "prototypes, normalised": _clustered(Prototypes(target_temperature=0.3, normalize_prototypes=True)),
    "prototypes, masked": _clustered(Prototypes(target_temperature=0.3, mask_empty=True)),
    "prototypes, hard, masked, normalised": _clustered(
        Prototypes(target_temperature=None, back_translation=False, normalize_prototypes=True, mask_empty=True)
    ),
    "external_prototypes": _clustered(ExternalPrototypes()),
    "external_prototypes, soft, masked, normalised": _clustered(
        ExternalPrototypes(target_temperature=0.3, normalize_prototypes=True, mask_empty=True)
    ),
    "sum of prototypes": Instance(Sum(((1.0, InfoNCE()), (2.0, Prototypes()), (0.5, ExternalPrototypes())))),
    "sum": Instance(Sum(((1.0, InfoNCE()), (5.0, Affinity()), (0.5, NoiseMixture(learn=True)))), smooth=False),
    "reweighted": _fixed(Reweighted(InfoNCE(), by=CleanPosterior(warmup_epochs=1))),
    "reweighted, given": Instance(Reweighted(GeneralizedCE(), by=GivenWeights())),
}


#: The geometries other than the sphere that objectives are tried on, with the widths of image and caption features.
GEOMETRIES: dict[str, tuple[Geometry, int, int]] = {
    "euclidean": (Euclidean(), 6, 6),
    "oblique": (Oblique(sub_dim=3, num_spheres=2), 6, 6),
    "oblique, geodesic": (Oblique(sub_dim=3, num_spheres=2, distance="geodesic"), 6, 6),
    "oblique, geodesic sum": (Oblique(sub_dim=3, num_spheres=2, distance="geodesic_sum"), 6, 6),
    "filip": (FILIP(sub_dim=2), 6, 6),
    "filip, unequal": (FILIP(sub_dim=2), 4, 8),
}


def features(size: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit image and text features of pairs that fit fairly well."""
    generator = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=-1)
    noise = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    image = F.normalize(text + 0.7 * noise, dim=-1)
    return image.to(dtype), text.to(dtype)


def bias_of(objective: Objective, dtype: torch.dtype = torch.float64) -> Tensor | None:
    return torch.tensor(-1.5, dtype=dtype) if objective.needs_bias else None


def case_of(objective: Objective, size: int = 7, seed: int = 0, dim: int = 6, scale: float = 3.0) -> Case:
    """A batch with everything that any objective may ask for, in an order that is not that of the ids."""
    image, text = features(size, dim=dim, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    matches = (torch.rand(size, size, generator=generator, dtype=torch.float64) - 0.7).clamp(min=0) * 3
    matches.fill_diagonal_(1.0)
    matches = torch.maximum(matches, matches.T)
    return Case(
        objective,
        image,
        text,
        torch.tensor(scale, dtype=torch.float64),
        bias_of(objective),
        index=torch.randperm(size, generator=generator),
        matches=matches,
        weight=torch.rand(size, generator=generator, dtype=torch.float64) + 0.5,
        teacher_image=torch.randn(size, 4, generator=generator, dtype=torch.float64),
        teacher_points=TwoWay(*features(size, dim=4, seed=seed + 3)),
        prototypes=prototypes_of(*features(size, dim=4, seed=seed + 7), torch.tensor(scale * 1.5).double()),
        clock=Clock(seed=5, step=3, steps_per_epoch=2, total_steps=8),
    )


def on_geometry(case: Case, name: str, seed: int = 0) -> Case:
    """The case with raw features of fairly fitting pairs for another geometry; one caption has a padded token."""
    geometry, image_width, text_width = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(seed + 2)
    text = torch.randn(case.size, text_width, generator=generator, dtype=torch.float64)
    image = torch.randn(case.size, image_width, generator=generator, dtype=torch.float64)
    shared = min(image_width, text_width)
    image[:, :shared] += text[:, :shared]
    if isinstance(geometry, FILIP):
        text[1, -geometry.sub_dim :] = 0
    return replace(case, image=image, text=text, geometry=geometry)


def pairs_of(case: Case, **changes: object) -> Pairs:
    assert case.matches is not None
    return Pairs(
        case.image,
        case.text,
        case.scale,
        case.bias,
        case.index,
        matches=DenseMatches(case.matches),
        weight=case.weight,
        teacher_image=case.teacher_image,
        teacher_points=case.teacher_points,
        prototypes=case.prototypes,
        geometry=case.geometry,
        **changes,
    )


def state_of(case: Case) -> State:
    """A fresh state, prepared for the case's objective, at its clock."""
    state = State(case.size, "test")
    case.objective.prepare(state)
    state.clock = case.clock
    return state


def losses(
    objective: Objective, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, **settings: object
) -> Tensor:
    """The losses of one batch at the first step, with nothing known beside the embeddings."""
    state = State(len(image), "test")
    objective.prepare(state)
    settings.setdefault("teacher_image", torch.ones(len(image), 2, dtype=image.dtype))
    settings.setdefault("teacher_points", TwoWay(*features(len(image), dim=3, dtype=image.dtype)))
    settings.setdefault("weight", torch.ones(len(image), dtype=image.dtype))
    settings.setdefault("prototypes", prototypes_of(image, text, scale))
    return objective(Pairs(image, text, scale, bias, torch.arange(len(image)), **settings), state)
