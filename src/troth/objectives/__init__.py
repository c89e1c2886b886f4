"""Objectives: one idea a file, each reads like its equation.

A new objective is one file here, one member of :data:`ObjectiveConfig` (in :mod:`troth.objectives.composition`) and one
float64 reference loop in ``tests/references``.
"""

from __future__ import annotations

from troth.objectives.affinity import Affinity
from troth.objectives.base import About, Objective
from troth.objectives.clean_posterior import CleanPosterior
from troth.objectives.composition import ObjectiveConfig, Reweighted, Sum, WeightConfig, asks_for_weights, parts
from troth.objectives.cyclip import CyCLIP
from troth.objectives.decl import DeCL
from troth.objectives.distillation import Distillation
from troth.objectives.feature_distillation import FeatureDistillation
from troth.objectives.gamma_weights import GammaWeights
from troth.objectives.generalized_ce import GeneralizedCE
from troth.objectives.global_infonce import GlobalInfoNCE
from troth.objectives.infonce import InfoNCE
from troth.objectives.mimic import Mimic
from troth.objectives.mmcl import MMCL
from troth.objectives.noise_mixture import NoiseMixture
from troth.objectives.prototypes import ExternalPrototypes, Prototypes
from troth.objectives.self_distillation import SelfDistillation
from troth.objectives.sigmoid import Sigmoid
from troth.objectives.soft_targets import SoftTargets
from troth.objectives.weights import GivenWeights, Weight

__all__ = [
    "MMCL",
    "About",
    "Affinity",
    "CleanPosterior",
    "CyCLIP",
    "DeCL",
    "Distillation",
    "ExternalPrototypes",
    "FeatureDistillation",
    "GammaWeights",
    "GeneralizedCE",
    "GivenWeights",
    "GlobalInfoNCE",
    "InfoNCE",
    "Mimic",
    "NoiseMixture",
    "Objective",
    "ObjectiveConfig",
    "Prototypes",
    "Reweighted",
    "SelfDistillation",
    "Sigmoid",
    "SoftTargets",
    "Sum",
    "Weight",
    "WeightConfig",
    "asks_for_weights",
    "parts",
]
