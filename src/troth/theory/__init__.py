"""The linear theory of multimodal contrastive learning: losses, the contrastive cross-covariance, its SVD.

The room imports numpy, torch and :mod:`troth.errors`, so that it can be read, taught and copied on its own.

Source: Nakada et al. 2023, "Understanding multimodal contrastive learning and incorporating unpaired data".
"""

from __future__ import annotations

from troth.theory.covariance import (
    coefficients,
    contrastive_cross_covariance,
    cross_covariance,
    edge_cross_covariance,
    gradient,
    objective,
)
from troth.theory.fitting import Fit, fit_gradient_descent, fit_spectral, spectral_step
from troth.theory.linear import LinearEncoders, sin_theta
from troth.theory.losses import ContrastiveLoss
from troth.theory.matching import Detected, Matching, assign, detect
from troth.theory.spiked import EdgeSample, PairedSample, SpikedModel, UnpairedSample, haar_columns
from troth.theory.unimodal import principal_components, unimodal_contrastive
from troth.theory.unpaired import (
    AdamW,
    Detection,
    Training,
    cosines,
    detection_gradient,
    first_encoders,
    matching_accuracy,
    train_paired,
    train_unpaired,
)

__all__ = [
    "AdamW",
    "ContrastiveLoss",
    "Detected",
    "Detection",
    "EdgeSample",
    "Fit",
    "LinearEncoders",
    "Matching",
    "PairedSample",
    "SpikedModel",
    "Training",
    "UnpairedSample",
    "assign",
    "coefficients",
    "contrastive_cross_covariance",
    "cosines",
    "cross_covariance",
    "detect",
    "detection_gradient",
    "edge_cross_covariance",
    "first_encoders",
    "fit_gradient_descent",
    "fit_spectral",
    "gradient",
    "haar_columns",
    "matching_accuracy",
    "objective",
    "principal_components",
    "sin_theta",
    "spectral_step",
    "train_paired",
    "train_unpaired",
    "unimodal_contrastive",
]
