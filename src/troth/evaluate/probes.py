"""Classification with labelled examples: nearest neighbours, and logistic regression on embeddings."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from troth.errors import UserError
from troth.evaluate.checks import check_ids, check_points
from troth.evaluate.result import TaskResult
from troth.evaluate.uncertainty import mean_influence
from troth.evaluate.zero_shot import errors_of, per_class_mean
from troth.geometry import Euclidean, Geometry, Oblique
from troth.similarity import topk

#: Test pictures whose votes are counted together: their (rows, classes) table is the memory this takes.
_VOTE_ROWS = 4096


@torch.no_grad()
def knn(
    train_embeddings: Float[Tensor, "N D"],
    train_labels: Int64[Tensor, " N"],
    test_embeddings: Float[Tensor, "Q D"],
    test_labels: Int64[Tensor, " Q"],
    geometry: Geometry,
    *,
    k: int = 20,
    temperature: float = 0.07,
    task: str = "knn",
) -> TaskResult:
    """Classify by the ``k`` nearest training points, each voting with weight ``exp(cosine / temperature)``.

    The nearest are those of largest similarity. A vote takes a cosine, which has no unit, so that one temperature suits
    every geometry: the similarity itself where it is a cosine (sphere) or a mean of cosines (FILIP), and elsewhere a
    function of the similarity that never falls, so that a nearer neighbour never weighs less:

    .. code-block:: text

        oblique, inner product    similarity / m                        the mean cosine of the m spheres
        oblique, geodesic         cos(distance / sqrt(m))               of the spheres' root-mean-square angle
        oblique, geodesic sum     cos(distance / m)                     of the spheres' mean angle
        euclidean                 1 - distance^2 / (2 spread^2)         the cosine, for centred points of unit length

    The oblique ones are the cosine itself for one sphere. ``spread`` is the root-mean-square distance of the training
    points from their mean: a model that stretches or moves its space votes as before.

    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4,
    whose temperature this is (their k is 200, for 1,000 images a class); of the sphere alone.

    Returns:
        metrics ``accuracy`` and ``mean_class_accuracy``; details ``prediction``, ``query/label``. A ``k`` above N
        becomes N, with a note.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, and a k or temperature that is not positive.
    """
    check_points(geometry, train_embeddings=train_embeddings, test_embeddings=test_embeddings)
    if k < 1:
        raise UserError(f"expected at least one neighbour, got {k}", where="k")
    if not temperature > 0:
        raise UserError(f"expected a positive temperature, got {temperature}", where="temperature")
    count = int(train_embeddings.shape[0])
    labels = check_ids("train_labels", train_labels, count)
    names, known = torch.unique(labels, return_inverse=True)
    used = min(k, count)
    notes = (f"k = {k} lowered to the {count} training points there are.",) if used < k else ()
    values, indices = topk(test_embeddings, train_embeddings, used, geometry)
    values, indices = _cosines(values, train_embeddings, geometry).cpu(), indices.cpu()
    predicted: list[Tensor] = []
    for cosines, neighbours in zip(torch.split(values, _VOTE_ROWS), torch.split(indices, _VOTE_ROWS), strict=True):
        weight = torch.exp((cosines - cosines[:, :1]) / temperature)
        votes = weight.new_zeros(len(neighbours), len(names)).scatter_add_(1, known[neighbours], weight)
        predicted.append(names[votes.argmax(dim=1)])
    return _probe_result(task, torch.cat(predicted), test_labels, labels, notes)


def _cosines(similarities: Tensor, train_embeddings: Tensor, geometry: Geometry) -> Tensor:
    """Return similarities as the cosines that :func:`knn` says they stand for."""
    if isinstance(geometry, Euclidean):
        spread_squared = train_embeddings.double().var(dim=0, correction=0).sum()
        # Where all training points coincide all are equally far. Doubles: far from all points the squares are huge.
        scaled = similarities.double().square() / (2 * spread_squared)
        return torch.where(spread_squared > 0, 1 - scaled, torch.ones_like(scaled))
    if isinstance(geometry, Oblique) and geometry.distance != "inner_product":
        spheres = geometry.num_spheres
        return torch.cos(similarities / (math.sqrt(spheres) if geometry.distance == "geodesic" else spheres))
    return similarities / geometry.num_spheres


def linear_probe(
    train_embeddings: Float[Tensor, "N D"],
    train_labels: Int64[Tensor, " N"],
    test_embeddings: Float[Tensor, "Q D"],
    test_labels: Int64[Tensor, " Q"],
    *,
    inverse_regularization: float = 0.316,
    max_iterations: int = 1000,
    task: str = "linear-probe",
) -> TaskResult:
    """Fit multinomial logistic regression (L-BFGS, scikit-learn) on training embeddings and score it on test ones.

    Args:
        train_embeddings: points, one a training picture.
        train_labels: their classes, at least two different ones.
        test_embeddings: points, one a test picture.
        test_labels: their classes.
        inverse_regularization: scikit-learn's C; the default is that of the example in OpenAI's CLIP repository. Choose
            it on held-out pictures where the absolute number matters.
        max_iterations: L-BFGS iterations, as in Radford et al. 2021, appendix A.3.
        task: name of the result.

    Returns:
        metrics ``accuracy`` and ``mean_class_accuracy``; details ``prediction``, ``query/label``; a note if the fit
        stopped at ``max_iterations``.

    Raises:
        UserError: for empty, non-finite or mismatched tensors, or a single class.
    """
    check_points(train_embeddings=train_embeddings, test_embeddings=test_embeddings)
    labels = check_ids("train_labels", train_labels, int(train_embeddings.shape[0]))
    if len(torch.unique(labels)) < 2:
        raise UserError("logistic regression needs at least two classes", where="train_labels")
    model = LogisticRegression(C=inverse_regularization, max_iter=max_iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train_embeddings.detach().cpu().float().numpy(), labels.numpy())
    stopped = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    notes = (f"The fit stopped at {max_iterations} iterations before it converged.",) if stopped else ()
    predicted = torch.from_numpy(model.predict(test_embeddings.detach().cpu().float().numpy()))
    return _probe_result(task, predicted, test_labels, labels, notes)


def _probe_result(
    task: str, prediction: Tensor, test_labels: Tensor, train_labels: Tensor, notes: tuple[str, ...]
) -> TaskResult:
    label = check_ids("test_labels", test_labels, len(prediction))
    unseen = int((~torch.isin(label, train_labels)).sum())
    if unseen:
        notes = (
            *notes,
            f"{unseen} test pictures are of classes without a training picture and count as wrong.",
        )
    right = (prediction == label).numpy().astype(np.float64)
    per_class = per_class_mean(right, label.numpy())
    influences = {"accuracy": mean_influence(right), "mean_class_accuracy": mean_influence(per_class)}
    return TaskResult(
        task=task,
        metrics={"accuracy": float(right.mean()), "mean_class_accuracy": float(per_class.mean())},
        standard_errors=errors_of(influences),
        num_queries=len(label),
        influences=influences,
        details={"prediction": prediction.numpy(), "query/label": label.numpy()},
        notes=notes,
    )
