"""Affinity consistency: do an image's neighbours among images agree with its caption's among captions?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from troth.errors import UserError
from troth.evaluate.checks import check_points
from troth.evaluate.result import TaskResult
from troth.similarity.gram import row_correlations


@torch.no_grad()
def affinity_consistency(
    image_embeddings: Float[Tensor, "N D"],
    text_embeddings: Float[Tensor, "N E"],
    *,
    task: str = "affinity_consistency",
) -> TaskResult:
    """Correlate every sample's cosines with all images and with all captions, and average.

    .. code-block:: text

        R = 1/N sum_i correlation over j of <I_i, I_j> and <T_i, T_j>          in [-1, 1], dimensionless

    The source has ``j = i`` among the ``j``: a point that is (1, 1) for every sample and draws the correlation up, most
    where there are few samples. ``with_self`` is the source's, ``without_self`` leaves that point out. Points of any
    geometry are flattened and normalised. A row whose affinities do not vary (a collapsed model's) has correlation 0.

    The two sides may be two models' embeddings of the same images, of different widths, as in the source's figure 5a.

    From second moments in float64, ``O(N D^2)``; nothing of size ``N x N``.

    Source: Wu et al. 2024, "SaCo loss: sample-wise affinity consistency for vision-language pre-training" (CVPR),
    equations 3 and 4.

    Args:
        image_embeddings: one point a sample.
        text_embeddings: one point a sample, of the same samples in the same order.
        task: name of the result.

    Returns:
        metrics ``with_self`` and ``without_self``; details of the same names hold ``(N,)`` correlations. No standard
        errors: rows share their columns, and are not independent.

    Raises:
        UserError: for empty or non-finite tensors, different numbers of rows, and fewer than 3 samples.
    """
    check_points(image_embeddings=image_embeddings)
    check_points(text_embeddings=text_embeddings)
    counts = len(image_embeddings), len(text_embeddings)
    if counts[0] != counts[1]:
        raise UserError(f"one caption an image is needed, got {counts[0]} images and {counts[1]} captions")
    if counts[0] < 3:
        raise UserError(f"a correlation needs at least 3 samples, got {counts[0]}", where="image_embeddings")
    image, text = (F.normalize(x.double(), dim=-1) for x in (image_embeddings, text_embeddings))
    rows = {
        name: row_correlations(image, text, with_self=with_self).cpu()
        for name, with_self in (("with_self", True), ("without_self", False))
    }
    return TaskResult(
        task=task,
        metrics={name: float(values.mean()) for name, values in rows.items()},
        standard_errors={},
        num_queries=counts[0],
        details={name: values.numpy() for name, values in rows.items()},
    )
