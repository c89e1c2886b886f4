"""Loops over the definitions of detected pairs and of their losses."""

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor


def edges(similarity: Tensor, matching: str) -> list[tuple[int, int]]:
    """The detected (image, caption), those of ``argmax`` maybe twice."""
    size = len(similarity)
    everyone = range(size)
    if matching == "top":
        every = [(i, j) for i in everyone for j in everyone]
        return sorted(every, key=lambda edge: -float(similarity[edge]))[:size]
    if matching == "hungarian":
        values = similarity.tolist()
        best = max(permutations(everyone), key=lambda order: sum(values[i][order[i]] for i in everyone))
        return list(enumerate(best))
    by_caption = [(max(everyone, key=lambda i, j=j: float(similarity[i, j])), j) for j in everyone]
    by_image = [(i, max(everyone, key=lambda j, i=i: float(similarity[i, j]))) for i in everyone]
    return [*by_caption, *by_image] if matching == "argmax" else [edge for edge in by_image if edge in by_caption]


def top(logits: Tensor, similarity: Tensor, matching: str = "top") -> Tensor:
    found = edges(similarity, matching)
    losses = []
    for i in range(len(logits)):
        loss = 0.5 * (logits[i].exp().sum().log() + logits[:, i].exp().sum().log())
        for image, caption in found:
            if image == i:
                loss = loss - logits[i, caption]
        losses.append(loss)
    return torch.stack(losses)


def hungarian(logits: Tensor, similarity: Tensor) -> Tensor:
    return top(logits, similarity, "hungarian")


def argmax(logits: Tensor, similarity: Tensor) -> Tensor:
    """The published loss, whose halves are the mean over captions and over images, as one number for each row."""
    losses = []
    for i in range(len(logits)):
        favourite_image = max(range(len(logits)), key=lambda k, i=i: float(similarity[k, i]))
        favourite_text = max(range(len(logits)), key=lambda k, i=i: float(similarity[i, k]))
        first = -logits[favourite_image, i] + logits[i].exp().sum().log()
        second = -logits[i, favourite_text] + logits[:, i].exp().sum().log()
        losses.append(0.5 * (first + second))
    return torch.stack(losses)


def mutual_mean(logits: Tensor, similarity: Tensor) -> Tensor:
    """The mean symmetric cross-entropy of the pairs that choose each other."""
    losses = [
        0.5 * (logits[i].exp().sum().log() + logits[:, j].exp().sum().log()) - logits[i, j]
        for i, j in edges(similarity, "mutual")
    ]
    return torch.stack(losses).mean()


ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"top": top, "argmax": argmax, "hungarian": hungarian}
