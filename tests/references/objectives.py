"""Float64 loops, one for each equation, slow and plain: what the fast code is held against."""

import torch
from torch import Tensor


def logit(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, i: int, j: int) -> Tensor:
    value = scale * (image[i] * text[j]).sum()
    return value if bias is None else value + bias


def infonce(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    size, losses = len(image), []
    for i in range(size):
        row = sum(torch.exp(logit(image, text, scale, bias, i, j)) for j in range(size))
        column = sum(torch.exp(logit(image, text, scale, bias, j, i)) for j in range(size))
        match = torch.exp(logit(image, text, scale, bias, i, i))
        losses.append(-0.5 * torch.log(match / row) - 0.5 * torch.log(match / column))
    return torch.stack(losses)


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    size, losses = len(image), []
    for i in range(size):
        total = torch.zeros((), dtype=image.dtype)
        for j in range(size):
            sign = 1.0 if i == j else -1.0
            total = total - 0.5 * torch.log(torch.sigmoid(sign * logit(image, text, scale, bias, i, j)))
            total = total - 0.5 * torch.log(torch.sigmoid(sign * logit(image, text, scale, bias, j, i)))
        losses.append(total)
    return torch.stack(losses)


def generalized_ce(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, q: float = 0.5) -> Tensor:
    size, losses = len(image), []
    for i in range(size):
        row = sum(torch.exp(logit(image, text, scale, bias, i, j)) for j in range(size))
        column = sum(torch.exp(logit(image, text, scale, bias, j, i)) for j in range(size))
        match = torch.exp(logit(image, text, scale, bias, i, i))
        losses.append(0.5 * (1 - (match / row) ** q) / q + 0.5 * (1 - (match / column) ** q) / q)
    return torch.stack(losses)


#: One reference for each member of ``troth.objectives.ObjectiveConfig``.
REFERENCES = {"infonce": infonce, "sigmoid": sigmoid, "generalized_ce": generalized_ce}
