"""Pairs of features with a common part, some of them given other captions."""

import numpy as np
import torch
from torch import Tensor


def features(size: int, wrong: float, seed: int = 0, noise: float = 0.7) -> tuple[Tensor, Tensor, np.ndarray]:
    """Image features (24), text features (16) of six common factors, and which captions are another's."""
    draw = np.random.default_rng(seed)
    common = draw.standard_normal((size, 6))
    image = common @ draw.standard_normal((6, 24)) + noise * draw.standard_normal((size, 24)) + 0.5
    text = common @ draw.standard_normal((6, 16)) + noise * draw.standard_normal((size, 16)) - 0.3
    owner = np.arange(size)
    chosen = draw.permutation(size)[: round(wrong * size)]
    owner[chosen] = np.roll(chosen, 1)
    return torch.from_numpy(image).float(), torch.from_numpy(text[owner]).float(), owner != np.arange(size)
