"""Float64 loops of the linear theory: what ``troth.theory`` is held against."""

import math

import torch
from torch import Tensor

from troth.theory import ContrastiveLoss


def psi(loss: ContrastiveLoss, value: Tensor) -> Tensor:
    if loss.psi == "exp":
        return torch.exp(value / loss.tau)
    if loss.psi == "softplus":
        return loss.tau * torch.log1p(torch.exp(value / loss.tau))  # log(1 + small) has no digits left
    return value if loss.psi == "identity" else torch.clamp(loss.tau + value, min=0)


def phi(loss: ContrastiveLoss, value: Tensor) -> Tensor:
    if loss.phi == "identity":
        return value
    return loss.tau * torch.log(value) if loss.phi == "log" else loss.tau * (1 - value**-loss.q) / loss.q


def mean_loss(loss: ContrastiveLoss, s: Tensor) -> Tensor:
    """1/n sum_i of the two halves of the class's loss."""
    n, total = len(s), torch.zeros((), dtype=torch.float64)
    for i in range(n):
        for row in (s[i], s[:, i]):
            inner = torch.zeros((), dtype=torch.float64)
            for j in range(n):
                weight = loss.eps if i == j else 1.0
                if loss.average:
                    weight = weight / (n - 1 + loss.eps)
                if weight > 0:
                    inner = inner + weight * psi(loss, row[j] - loss.nu * s[i, i])
            total = total + 0.5 * phi(loss, inner) / n
    return total


def objective(loss: ContrastiveLoss, x: Tensor, y: Tensor, g1: Tensor, g2: Tensor, rho: float) -> Tensor:
    """The mean loss and the regulariser, of encoders."""
    s = torch.stack([torch.stack([(g1 @ a) @ (g2 @ b) for b in y]) for a in x])
    return mean_loss(loss, s) + rho / 2 * (g1.T @ g2).square().sum()


def covariance(x: Tensor, y: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """S(beta), term by term."""
    n, total = len(x), torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
    for i in range(n):
        total += one[i] * torch.outer(x[i], y[i]) / n
        for j in range(n):
            total -= two[i, j] * torch.outer(x[i], y[j]) / n
    return total


def detection_loss(
    g1: Tensor, g2: Tensor, x: Tensor, y: Tensor, edges: Tensor, rows: Tensor, columns: Tensor, tau: float
) -> Tensor:
    """1/m of half of all partition sums, less the detected logits."""
    m, total = len(x), torch.zeros((), dtype=x.dtype)
    u = [g1 @ each / torch.linalg.vector_norm(g1 @ each) for each in x]
    v = [g2 @ each / torch.linalg.vector_norm(g2 @ each) for each in y]
    for i in range(m):
        total = total + 0.5 * rows[i] * torch.log(sum(torch.exp(u[i] @ v[j] / tau) for j in range(m)))
        total = total + 0.5 * columns[i] * torch.log(sum(torch.exp(u[j] @ v[i] / tau) for j in range(m)))
        for j in range(m):
            total = total - edges[i, j] * (u[i] @ v[j]) / tau
    return total / m


def edges(s: Tensor, matching: str) -> Tensor:
    """The detected pairs, each by its definition."""
    m, found = len(s), torch.zeros_like(s)
    if matching == "top":
        for place in sorted(range(m * m), key=lambda place: -float(s[place // m, place % m]))[:m]:
            found[place // m, place % m] = 1
        return found
    image = [max(range(m), key=lambda i: float(s[i, j])) for j in range(m)]
    text = [max(range(m), key=lambda j: float(s[i, j])) for i in range(m)]
    if matching == "argmax":
        for k in range(m):
            found[image[k], k] += 0.5
            found[k, text[k]] += 0.5
        return found
    mutual = [(i, text[i]) for i in range(m) if image[text[i]] == i]
    for i, j in mutual:
        found[i, j] = m / len(mutual)
    return found


def sin_theta(a: Tensor, b: Tensor) -> float:
    """From the principal angles themselves."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(a).Q.T @ torch.linalg.qr(b).Q).clamp(max=1)
    return math.sqrt(sum(1 - float(cosine) ** 2 for cosine in cosines))
