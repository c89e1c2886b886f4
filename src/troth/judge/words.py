"""Which words a pair's captions use: what an encoder of sentences smooths over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Words that fewer pairs share say nothing of other pairs.
_FEWEST_PAIRS = 3
_DIMENSIONS = 384
#: The most frequent words are kept.
_VOCABULARY = 20_000
#: Rounding apart, the same.
_SAME = 1e-6


def caption_words(captions: Sequence[Sequence[str]], seed: int = 0) -> Float[Tensor, "N W"] | None:
    """Return the principal directions of the words of each pair's captions, unit rows.

    Term frequencies (logarithmic) times inverse document frequencies, reduced to 384 dimensions at most. A pair none of
    whose words is shared by three pairs is zero. None if the words tell no pair from another.

    Words are runs of two letters or digits and more, as scikit-learn takes them: of scripts that write without spaces,
    or vowels as marks, little or nothing is left.

    Args:
        captions: of each pair.
        seed: of the decomposition, which is randomised.

    Source: latent semantic analysis (Deerwester et al. 1990), by scikit-learn.
    """
    from sklearn.decomposition import TruncatedSVD  # takes a second to import
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    if len(captions) < _FEWEST_PAIRS:
        return None
    vectorizer = TfidfVectorizer(min_df=_FEWEST_PAIRS, max_features=_VOCABULARY, sublinear_tf=True, dtype=np.float32)
    try:
        counts = vectorizer.fit_transform([" ".join(group) for group in captions])
    except ValueError as error:
        if "empty vocabulary" in str(error) or "no terms remain" in str(error):
            return None
        raise
    if counts.shape[1] < 2 or abs(counts - counts[[0] * counts.shape[0]]).max() < _SAME:
        return None
    # The last bits would depend on the number of threads, and several are slower on matrices as narrow as these.
    with threadpool_limits(1, user_api="blas"):
        reduced = TruncatedSVD(min(_DIMENSIONS, counts.shape[1]), random_state=seed).fit_transform(counts)
    words = torch.from_numpy(normalize(reduced, copy=False)).float()
    return None if bool(((words - words[0]).abs() < _SAME).all()) else words
