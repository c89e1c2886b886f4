"""Which words a pair's captions use: what an encoder of sentences smooths over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

#: Words that fewer pairs share say nothing of other pairs.
_FEWEST_PAIRS = 3
_DIMENSIONS = 384
#: Of the most frequent words, so that memory does not grow with the vocabulary.
_VOCABULARY = 20_000


def caption_words(captions: Sequence[Sequence[str]], seed: int = 0) -> Float[Tensor, "N W"] | None:
    """Return the principal directions of the words of each pair's captions, unit rows; None if pairs share no words.

    Term frequencies (logarithmic) times inverse document frequencies, reduced to 384 dimensions at most. A pair none of
    whose words is shared by three pairs is zero.

    Args:
        captions: of each pair.
        seed: of the decomposition, which is randomised.

    Source: latent semantic analysis (Deerwester et al. 1990), by scikit-learn.
    """
    from sklearn.decomposition import TruncatedSVD  # takes a second to import
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectorizer = TfidfVectorizer(min_df=min(_FEWEST_PAIRS, len(captions)), max_features=_VOCABULARY, sublinear_tf=True)
    try:
        counts = vectorizer.fit_transform([" ".join(group) for group in captions])
    except ValueError:  # no word is left
        return None
    if counts.shape[1] < 2:
        return None
    reduced = TruncatedSVD(min(_DIMENSIONS, counts.shape[1] - 1), random_state=seed).fit_transform(counts)
    return torch.from_numpy(normalize(reduced)).float()
