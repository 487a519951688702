"""Models larger than memory: weights mapped from disk, one block alive at a time, results written block by block."""

from geoquant.streaming.checkpoint import Checkpoint
from geoquant.streaming.profiling import profile_folder
from geoquant.streaming.quantizing import Streamed, quantize_folder
from geoquant.streaming.skeleton import Skeleton, make_skeleton

__all__ = ["Checkpoint", "Skeleton", "Streamed", "make_skeleton", "profile_folder", "quantize_folder"]
