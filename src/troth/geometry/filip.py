"""FILIP's token-wise maximum similarity."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.geometry.points import at_least_float32, by_hand, unit
from troth.types import STRICT

#: Similarities of tokens formed at a time: 16 Mi, 64 MiB in float32, whatever the numbers of tokens.
TOKEN_BLOCK = 2**24


@dataclass(frozen=True, config=STRICT)
class FILIP:
    """Sets of unit tokens: each token of one side looks for its best match on the other.

    .. code-block:: text

        project(v)       = v seen as (M, n), each token divided by its length, flattened back to M n dimensions
        similarity(u, v) = mean_p max_q <u_p, v_q>      "image_to_text"    in [-1, 1]
                         = mean_q max_p <u_p, v_q>      "text_to_image"    p: the row's tokens, q: the column's

    A token of zeros is padding: it takes part in no maximum and no mean. A sample of padding only is at similarity 0 to
    everything. The sides may have different numbers of tokens, ``M = width / sub_dim`` each.

    The similarity is not symmetric: images' losses use the one direction, captions' the other (:meth:`views`). The
    default ``image_to_text`` averages over the tokens of the *row*. Evaluation puts queries in rows, so that pictures
    and captions that search each get FILIP's own similarity for their direction, and zero-shot classification the
    pictures'.

    Rows, columns and tokens are taken so many at a time that at most :data:`TOKEN_BLOCK` similarities of tokens exist
    at once. Of equally good matches one gets the gradient.

    Attributes:
        sub_dim: ``n``, dimensions of a token; the default is FILIP's.
        direction: whose tokens are averaged over: the row's (``image_to_text``) or the column's.

    Source: Yao et al. 2021, "FILIP: fine-grained interactive language-image pre-training", section 3.1, equations 3-5.
    """

    kind: Literal["filip"] = field(default="filip", kw_only=True)
    sub_dim: Annotated[int, Field(gt=0)] = 256
    direction: Literal["image_to_text", "text_to_image"] = "image_to_text"

    @property
    def num_spheres(self) -> int:
        """One: a mean of cosines has the range of a cosine."""
        return 1

    def project(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalise every token to unit length; half precisions are raised to float32, float64 is kept.

        Raises:
            UserError: if ``D`` is not a multiple of ``sub_dim``.
        """
        return unit(self._tokens(at_least_float32(features))).flatten(-2)

    def similarity(self, rows: Float[Tensor, "b Di"], columns: Float[Tensor, "N Dt"]) -> Float[Tensor, "b N"]:
        """Compare every row with every column."""
        return by_hand(rows, columns, self._forward, self.similarity_gradient)

    def paired_similarity(self, rows: Float[Tensor, "B Di"], columns: Float[Tensor, "B Dt"]) -> Float[Tensor, " B"]:
        """Compare row ``i`` with column ``i``."""
        if self.direction == "text_to_image":
            rows, columns = columns, rows
        anchors, others = self._tokens(rows), self._tokens(columns)
        size = max(1, TOKEN_BLOCK // (anchors.shape[1] * others.shape[1]))
        parts = []
        for anchor, other in zip(torch.split(anchors, size), torch.split(others, size), strict=True):
            absent = ~_present(other)
            best = (anchor @ other.transpose(1, 2)).masked_fill(absent.unsqueeze(1), -torch.inf).max(dim=2).values
            counted = _present(anchor) & ~absent.all(dim=1, keepdim=True)
            parts.append(best.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1))
        return torch.cat(parts)

    def similarity_gradient(
        self,
        gradient: Float[Tensor, "b N"],
        rows: Float[Tensor, "b Di"],
        columns: Float[Tensor, "N Dt"],
    ) -> tuple[Float[Tensor, "b Di"], Float[Tensor, "N Dt"]]:
        """Pull ``gradient`` back: each averaged token and its best match pull at each other with ``gradient / M``."""
        if self.direction == "image_to_text":
            return self._backward(gradient, rows, columns)
        column_gradient, row_gradient = self._backward(gradient.T, columns, rows)
        return row_gradient, column_gradient

    def views(self) -> tuple[FILIP, FILIP]:
        """Return the similarity of the images' losses and that of the captions'."""
        return replace(self, direction="image_to_text"), replace(self, direction="text_to_image")

    def _forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        if self.direction == "image_to_text":
            return self._mean_of_best(rows, columns)
        return self._mean_of_best(columns, rows).T.contiguous()

    def _mean_of_best(self, anchor_points: Tensor, other_points: Tensor) -> Float[Tensor, "a o"]:
        anchors, others = self._tokens(anchor_points), self._tokens(other_points)
        result = anchors.new_empty(len(anchors), len(others))
        for a, o in _blocks(anchors, others):
            tokens, absent = _token_similarities(anchors[a], others[o])
            counted = _counted(anchors[a], absent)
            # `where` and not a product: the best match among nothing is minus infinity.
            best = torch.where(counted, tokens.amax(dim=3), 0.0)
            result[a, o] = best.sum(dim=1) / counted.sum(dim=1).clamp_(min=1)
        return result

    def _backward(self, gradient: Tensor, anchor_points: Tensor, other_points: Tensor) -> tuple[Tensor, Tensor]:
        anchors, others = self._tokens(anchor_points), self._tokens(other_points)
        anchor_gradient, other_gradient = torch.zeros_like(anchors), torch.zeros_like(others)
        for a, o in _blocks(anchors, others):
            tokens, absent = _token_similarities(anchors[a], others[o])
            counted = _counted(anchors[a], absent)
            share = gradient[a, o] / counted.sum(dim=1).clamp_(min=1)
            match = tokens.argmax(dim=3, keepdim=True)
            weight = tokens.zero_().scatter_(3, match, torch.where(counted, share.unsqueeze(1), 0.0).unsqueeze(3))
            weight = weight.flatten(2).flatten(0, 1)
            anchor_gradient[a] += (weight @ others[o].flatten(0, 1)).view_as(anchors[a])
            other_gradient[o] += (weight.T @ anchors[a].flatten(0, 1)).view_as(others[o])
        return anchor_gradient.flatten(-2), other_gradient.flatten(-2)

    def _tokens(self, features: Tensor) -> Float[Tensor, "B M n"]:
        if features.shape[-1] == 0 or features.shape[-1] % self.sub_dim:
            raise UserError(
                f"features of {features.shape[-1]} dimensions are not whole tokens of {self.sub_dim}",
                where="geometry.sub_dim",
                remedy="set geometry.sub_dim to the number of dimensions of one token",
            )
        return features.reshape(*features.shape[:-1], features.shape[-1] // self.sub_dim, self.sub_dim)


def _present(tokens: Float[Tensor, "B M n"]) -> Tensor:
    """Return ``(B, M)``: which tokens are not padding."""
    return (tokens != 0).any(dim=2)


def _blocks(anchors: Tensor, others: Tensor) -> list[tuple[slice, slice]]:
    """Return slices of anchors and others whose tokens' similarities are at most :data:`TOKEN_BLOCK`, or one pair."""
    tokens = anchors.shape[1] * others.shape[1]
    wide = max(1, min(len(others), TOKEN_BLOCK // tokens))
    high = max(1, TOKEN_BLOCK // (tokens * wide))
    return [
        (slice(a, min(a + high, len(anchors))), slice(o, min(o + wide, len(others))))
        for a in range(0, len(anchors), high)
        for o in range(0, len(others), wide)
    ]


def _token_similarities(anchors: Tensor, others: Tensor) -> tuple[Float[Tensor, "a P o Q"], Tensor]:
    """Return every token's similarity to every other's, minus infinity for padding, and ``(o, Q)`` what is padding."""
    absent = ~_present(others)
    tokens = anchors.flatten(0, 1) @ others.flatten(0, 1).T
    return tokens.view(*anchors.shape[:2], *others.shape[:2]).masked_fill_(absent, -torch.inf), absent


def _counted(anchors: Tensor, absent: Tensor) -> Tensor:
    """Return ``(a, P, o)``: the tokens that are averaged over, which are not padding and have something to match."""
    return _present(anchors).unsqueeze(2) & ~absent.all(dim=1)
