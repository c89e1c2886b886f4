"""Data: where pairs come from, which of their captions are wrong on purpose, and what could not be read."""

from troth.data.augment import AUGMENTATIONS, Augmentation, AugmentationConfig
from troth.data.check import check_source
from troth.data.embedded_source import EmbeddedSource
from troth.data.episode_plan import EpisodePlan
from troth.data.feature_stream import FeatureStream
from troth.data.files import atomic_path, cache_folder
from troth.data.folder import FolderSource
from troth.data.huggingface import HuggingFaceSource
from troth.data.images import MAX_PIXELS, decode
from troth.data.ledger import REASONS, Ledger, LedgerEntry, Reason, SampleError
from troth.data.loader import BatchStream, ImageTextStream, LoadedBatch
from troth.data.noise import BatchNoise, CaptionAssignment, Noise, caption_owner
from troth.data.plan import BatchPlan, Plan
from troth.data.source import IndexedSource, Source
from troth.data.sources import PartSource, SourceConfig
from troth.data.spiked import SpikedSource
from troth.data.table import TableSource
from troth.data.transforms import CLIP_MEAN, CLIP_STD, ImageTransform
from troth.data.unpaired import DetectionTruth, UnpairedPlans, UnpairedStream, UnpairedTexts, WithinBatches
from troth.data.vectors import (
    VECTOR_SUFFIXES,
    PairedVectors,
    VectorSource,
    VectorsSource,
    carries_vectors,
    named_text_vectors,
    paired_vectors,
)
from troth.data.webdataset import TarSource
from troth.data.weighted_plan import WeightedPlan

__all__ = [
    "AUGMENTATIONS",
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_PIXELS",
    "REASONS",
    "VECTOR_SUFFIXES",
    "Augmentation",
    "AugmentationConfig",
    "BatchNoise",
    "BatchPlan",
    "BatchStream",
    "CaptionAssignment",
    "DetectionTruth",
    "EmbeddedSource",
    "EpisodePlan",
    "FeatureStream",
    "FolderSource",
    "HuggingFaceSource",
    "ImageTextStream",
    "ImageTransform",
    "IndexedSource",
    "Ledger",
    "LedgerEntry",
    "LoadedBatch",
    "Noise",
    "PairedVectors",
    "PartSource",
    "Plan",
    "Reason",
    "SampleError",
    "Source",
    "SourceConfig",
    "SpikedSource",
    "TableSource",
    "TarSource",
    "UnpairedPlans",
    "UnpairedStream",
    "UnpairedTexts",
    "VectorSource",
    "VectorsSource",
    "WeightedPlan",
    "WithinBatches",
    "atomic_path",
    "cache_folder",
    "caption_owner",
    "carries_vectors",
    "check_source",
    "decode",
    "named_text_vectors",
    "paired_vectors",
]
