"""Boosted trees that tell given pairs from re-paired ones, and score only what they did not see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int64

from troth.judge.density import Float64


def discriminate(
    evidence: list[Float64],
    fold: Int64[np.ndarray, " N"],
    seed: int,
    used: list[Bool[np.ndarray, " N"]] | None = None,
) -> tuple[Float64, Float64]:
    """Return the log-odds of being given, of the given pairs ``(N,)`` and of all re-paired ones, out of fold.

    Args:
        evidence: on the given pairs, and on those of every re-pairing.
        fold: the part each is in.
        seed: of the trees.
        used: which of the given pairs, and of those of every re-pairing, trees are fitted to, if there are enough of
            them; None: all. All are scored.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import

    given, others = evidence[0], evidence[1:]
    score = np.zeros(len(given))
    wrong = [np.zeros(len(given)) for _ in others]
    fewest = max(5, len(fold) // 90)
    everywhere = np.ones(len(fold), dtype=bool)
    for outside, inside in _splits(fold):
        rows = [outside & each for each in used or [everywhere] * len(evidence)]
        # Of none there is nothing to learn, and the trees would stop; so few fill hardly a leaf.
        if min(rows[0].sum(), sum(each.sum() for each in rows[1:])) < 4 * fewest:
            rows = [outside] * len(evidence)
        trees = HistGradientBoostingClassifier(
            max_depth=3,
            max_iter=100,
            learning_rate=0.1,
            min_samples_leaf=fewest,
            early_stopping=False,
            random_state=seed,
        )
        num_given, num_others = int(rows[0].sum()), int(sum(each.sum() for each in rows[1:]))
        features = np.concatenate([each[chosen] for each, chosen in zip(evidence, rows, strict=True)])
        trees.fit(features, np.repeat([1, 0], [num_given, num_others]))
        # Not by sample weights: scikit-learn takes half a minute to bin weighted samples.
        prior = np.log(num_others / num_given)
        score[inside] = trees.decision_function(given[inside]) + prior
        for each, values in zip(others, wrong, strict=True):
            values[inside] = trees.decision_function(each[inside]) + prior
    return score, np.concatenate(wrong)


def _splits(fold: Int64[np.ndarray, " N"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number in np.unique(fold):
        yield fold != number, fold == number
