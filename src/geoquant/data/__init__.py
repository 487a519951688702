"""Where do batches come from? Named image sets, folders, callables, and the digits that are always at hand."""

from geoquant.data.batches import Batch, Batches, check, collect, fingerprint, samples
from geoquant.data.embedded import DIGITS_STATISTICS, digits
from geoquant.data.hub import KNOWN_SETS, KnownSet
from geoquant.data.images import IMAGENET, ImageSet, Normalize, PixelStatistics, pixel_statistics
from geoquant.data.load import load_data, load_images

__all__ = [
    "DIGITS_STATISTICS",
    "IMAGENET",
    "KNOWN_SETS",
    "Batch",
    "Batches",
    "ImageSet",
    "KnownSet",
    "Normalize",
    "PixelStatistics",
    "check",
    "collect",
    "digits",
    "fingerprint",
    "load_data",
    "load_images",
    "pixel_statistics",
    "samples",
]
