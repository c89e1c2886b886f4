"""Which sample goes where: the rules by which the tests are held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import numpy as np
from emoji import STYLES, TRAIN_STYLES, Variant
from numpy.typing import NDArray
from openclipart import Drawing
from render import THUMBNAIL_SIDE, Picture

HELD_OUT_SHARE = 0.1
RETRIEVAL_SHARE = 0.1
NEAR_DUPLICATE = 0.9  # the correlation of two thumbnails from which on they count as the same picture


def fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") / 2**64


def complete_concepts(variants: Iterable[Variant], pictures: Mapping[str, Picture]) -> list[Variant]:
    """The base forms that have a picture in all three styles."""
    return [
        variant
        for variant in variants
        if variant.tone is None and all(f"{style}-{variant.hexcode}" in pictures for style in STYLES)
    ]


def concept_families(concepts: Sequence[Variant], pictures: Mapping[str, Picture]) -> dict[str, str]:
    """Concept -> the smallest code of its family; equal pictures in a training style also make a family."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for concept in concepts:
        digests = {pictures[f"{style}-{concept.hexcode}"].digest for style in TRAIN_STYLES}
        for link in concept.families | digests:
            parent[root(link)] = root(concept.concept)
    members: defaultdict[str, list[str]] = defaultdict(list)
    for concept in concepts:
        members[root(concept.concept)].append(concept.concept)
    return {concept: min(family) for family in members.values() for concept in family}


def held_out_concepts(families: Mapping[str, str]) -> frozenset[str]:
    """The concepts whose family's hash is among the lowest tenth."""
    return frozenset(concept for concept, family in families.items() if fraction(f"concept:{family}") < HELD_OUT_SHARE)


def plain_name(name: str) -> str:
    """A name as it is compared: emoji say "flag: Ghana", drawings "flag of Ghana"."""
    return name.casefold().replace("flag: ", "flag of ").strip()


def retrieval_drawings(
    drawings: Sequence[Drawing], emoji_captions: Iterable[str], pictures: Mapping[str, Picture]
) -> frozenset[str]:
    """The keys of the retrieval test: the fit drawings of lowest hash, as many as a tenth of all drawings.

    A drawing is fit if its folder and author are, no other sample has its first caption, and no other picture
    of the data set looks like it.
    """
    uses: defaultdict[str, set[str]] = defaultdict(set)
    for text in emoji_captions:
        uses[text.casefold()].add("emoji")
    for drawing in drawings:
        for text in drawing.captions:
            uses[text.casefold()].add(drawing.key)
    fit = [
        drawing.key
        for drawing in drawings
        if drawing.fit_for_test and uses[drawing.captions[0].casefold()] == {drawing.key}
    ]
    likeness = nearest_likeness(fit, pictures)
    distinct = [key for key in fit if likeness[key] < NEAR_DUPLICATE]
    distinct.sort(key=lambda key: fraction(f"retrieval:{key}"))
    return frozenset(distinct[: round(RETRIEVAL_SHARE * len(drawings))])


def nearest_likeness(keys: Sequence[str], pictures: Mapping[str, Picture]) -> dict[str, float]:
    """For each key, the highest correlation of its thumbnail with that of any other picture."""
    names = sorted(pictures)
    rows = {name: place for place, name in enumerate(names)}
    vectors = normalised_thumbnails([pictures[name] for name in names])
    likeness: dict[str, float] = {}
    for start in range(0, len(keys), 256):
        block = [rows[key] for key in keys[start : start + 256]]
        correlations = vectors[block] @ vectors.T
        correlations[np.arange(len(block)), block] = -1.0
        for row, highest in zip(block, correlations.max(axis=1), strict=True):
            likeness[names[row]] = float(highest)
    return likeness


def normalised_thumbnails(pictures: Sequence[Picture]) -> NDArray[np.float32]:
    """Thumbnails as unit vectors: how far each pixel is from the picture's mean colour."""
    shape = (len(pictures), THUMBNAIL_SIDE * THUMBNAIL_SIDE, 3)
    data = b"".join(picture.thumbnail for picture in pictures)
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape).astype(np.float32)
    centred = (pixels - pixels.mean(axis=1, keepdims=True)).reshape(len(pictures), -1)
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return unit
