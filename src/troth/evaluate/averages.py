"""Several points of one thing: a class described by prompts, a picture by captions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from troth.errors import UserError
from troth.geometry import Geometry, Oblique, Sphere
from troth.similarity import TILE


def mean_point(mean: Float[Tensor, "... D"], geometry: Geometry) -> Float[Tensor, "... D"] | None:
    """Return the point that stands for several points, from their arithmetic mean; None if none does.

    .. code-block:: text

        sphere                    mean / |mean|     CLIP's own
        oblique, inner product    mean              its similarity is the mean of the points' similarities
        any other                 None              no point has the mean of the points' similarities

    CLIP's renormalised mean is the field's convention, not a mean of similarities: it raises those of a class whose
    prompts disagree. The oblique mean is left off the manifold, as the inner product is linear; so an oblique manifold
    of a single sphere averages as its paper does, and not as CLIP does. With any other geometry a mean point would be
    closer or farther than the points themselves by their spread, and among FILIP's tokens it would match nothing.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 3.1.4
    (sphere); "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), whose zero-shot
    evaluation takes the mean over prompts of logits, not of embeddings (the others).
    """
    if isinstance(geometry, Sphere):
        return geometry.project(mean)
    if isinstance(geometry, Oblique) and geometry.distance == "inner_product":
        return mean
    return None


def class_embedding(text_embeddings: Float[Tensor, "C T D"], geometry: Geometry) -> Float[Tensor, "C *T D"]:
    """Make of the points of a class's T prompts ("a photo of a {name}", ...) what pictures are compared with.

    Returns:
        ``(C, D)``, one point a class, where one stands for several (:func:`mean_point`) or there is one prompt only;
        else ``(C, T, D)`` as given: a class's similarity is then the mean of its prompts'.

    Raises:
        UserError: for another number of dimensions, or no prompts.
    """
    if text_embeddings.ndim != 3 or 0 in text_embeddings.shape:
        raise UserError(
            f"expected (classes, prompts, dimensions), got {tuple(text_embeddings.shape)}",
            where="text_embeddings",
        )
    point = mean_point(text_embeddings.mean(dim=1), geometry)
    if point is not None:
        return point
    return text_embeddings[:, 0] if text_embeddings.shape[1] == 1 else text_embeddings


def class_similarity(
    images: Float[Tensor, "b D"], class_embeddings: Float[Tensor, "C *T D"], geometry: Geometry
) -> Float[Tensor, "b C"]:
    """Compare every picture with every class: with its one point, or with its T prompts, over which it averages.

    Some :data:`~troth.similarity.TILE` columns of prompts are compared at a time.
    """
    if class_embeddings.ndim == 2:
        return geometry.similarity(images, class_embeddings)
    prompts = class_embeddings.shape[1]
    parts = torch.split(class_embeddings, max(1, TILE[1] // prompts))
    return torch.cat(
        [geometry.similarity(images, part.flatten(0, 1)).view(len(images), -1, prompts).mean(dim=2) for part in parts],
        dim=1,
    )
