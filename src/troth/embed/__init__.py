"""Embed: the one way from data to vectors, and the cache that makes it happen once."""

from __future__ import annotations

from troth.embed.cache import CacheEntry, CacheKey, FeatureCache, Uncached
from troth.embed.embedder import Embedder, FrozenEncoders
from troth.embed.features import CaptionTable, FrozenFeatures, distinct_captions, frozen_features, frozen_texts
from troth.embed.trained import SourceEmbeddings, embed_source, embed_text_features, embed_texts
from troth.embed.vectors import CarriedVectors, carried_features

__all__ = [
    "CacheEntry",
    "CacheKey",
    "CaptionTable",
    "CarriedVectors",
    "Embedder",
    "FeatureCache",
    "FrozenEncoders",
    "FrozenFeatures",
    "SourceEmbeddings",
    "Uncached",
    "carried_features",
    "distinct_captions",
    "embed_source",
    "embed_text_features",
    "embed_texts",
    "frozen_features",
    "frozen_texts",
]
