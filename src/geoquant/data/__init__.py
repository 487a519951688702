"""Where do batches come from? Named image sets, folders, texts, callables, and the digits that are always at hand."""

from geoquant.data.augment import AugmentedImages
from geoquant.data.batches import Batch, Batches, check, collect, fingerprint, samples
from geoquant.data.embedded import DIGITS_STATISTICS, digits
from geoquant.data.examples import ExampleSet, example_batches, load_examples
from geoquant.data.hub import KNOWN_SETS, KnownSet
from geoquant.data.images import IMAGENET, ImageSet, Normalize, PixelStatistics, pixel_statistics
from geoquant.data.load import load_data, load_images
from geoquant.data.text import TextSet, load_text
from geoquant.data.tokens import (
    Tokenizer,
    calibration_batches,
    evaluation_batches,
    evaluation_windows,
    tokenize,
)

__all__ = [
    "DIGITS_STATISTICS",
    "IMAGENET",
    "KNOWN_SETS",
    "AugmentedImages",
    "Batch",
    "Batches",
    "ExampleSet",
    "ImageSet",
    "KnownSet",
    "Normalize",
    "PixelStatistics",
    "TextSet",
    "Tokenizer",
    "calibration_batches",
    "check",
    "collect",
    "digits",
    "evaluation_batches",
    "evaluation_windows",
    "example_batches",
    "fingerprint",
    "load_data",
    "load_examples",
    "load_images",
    "load_text",
    "pixel_statistics",
    "samples",
    "tokenize",
]
