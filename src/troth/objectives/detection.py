"""Losses of images and captions that come without pairs: the pairs are detected, then learned from."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from troth.similarity import Edges, Matching, Pairs, edge_sums, has_edge


def detection_losses(pairs: Pairs, edges: Edges, matching: Matching) -> Float[Tensor, " B"]:
    """Return ``(B,)`` losses in nats of unpaired images and captions, given which of them were detected to fit.

    With ``N`` images and ``N`` captions in the whole batch, in any two orders, and the edges ``E`` among them:

    .. code-block:: text

        top, hungarian   loss_i = 1/2 (LSE_j l_ij + LSE_j l_ji) - sum_{j: (i, j) in E} l_ij
        argmax           loss_i = 1/2 (LSE_j l_ij + LSE_j l_ji - l_{a_i i} - l_{i b_i})
                         a_i = argmax_k s_ki, the image that caption i prefers; b_i = argmax_k s_ik
        mutual           loss_i = N / |E| (1/2 [i has an edge] LSE_j l_ij + 1/2 [caption i has one] LSE_j l_ji
                                  - sum_{j: (i, j) in E} l_ij)

    ``l`` are the logits that learn, ``s`` the similarities that judge, LSE the log-sum-exp. Image ``i`` and caption
    ``i`` have nothing to do with each other: a row of the losses is a place to count two of them in. The mean over rows
    is what the choice of orders cannot change: for ``top`` and ``argmax`` the published loss, for ``mutual`` the mean
    symmetric cross-entropy of the detected pairs among all of the batch (what has no partner is a negative, and has no
    loss of its own).

    The published code of ``argmax`` puts the captions' favourites beside the images' partition sums, ``-mean_i l_{a_i
    i} + mean_i LSE_j l_ij``, and the images' beside the captions'. It averages the two, and so the sum is the same
    whichever stands beside which.

    Source: Nakada et al. 2023, "Understanding multimodal contrastive learning and incorporating unpaired data", and
    the notebooks published with it: ``top`` is the one of the synthetic experiment, ``argmax`` that of the real data.
    ``mutual`` and ``hungarian`` are this package's.

    Args:
        pairs: this rank's images and captions, whose rows are no pairs.
        edges: what was detected, by the same ``matching``.
        matching: which loss.
    """
    partition, along_edges = pairs.log_partition(), edge_sums(pairs, edges)
    if matching == "argmax":
        return 0.5 * (partition.image + partition.text - along_edges)
    if matching != "mutual":
        return 0.5 * (partition.image + partition.text) - along_edges
    found = has_edge(pairs, edges)
    losses = 0.5 * (found.image * partition.image + found.text * partition.text) - along_edges
    return losses * (pairs.num_pairs / max(1, len(edges)))
