"""The same function in weights that round better: scales moved across layers, and rotations."""

from geoquant.transforms.absorb import Absorb
from geoquant.transforms.applying import Names, check_needs, find_transforms, transform, transform_, transformed
from geoquant.transforms.awq import Awq
from geoquant.transforms.equalize import Equalize
from geoquant.transforms.hadamard import Hadamard, untie_
from geoquant.transforms.orthogonal import random_hadamard
from geoquant.transforms.protocol import (
    TRANSFORMS,
    Applied,
    Skipped,
    Transform,
    TransformContext,
    TransformReport,
    needs_plan,
)
from geoquant.transforms.smoothquant import SmoothQuant

__all__ = [
    "TRANSFORMS",
    "Absorb",
    "Applied",
    "Awq",
    "Equalize",
    "Hadamard",
    "Names",
    "Skipped",
    "SmoothQuant",
    "Transform",
    "TransformContext",
    "TransformReport",
    "check_needs",
    "find_transforms",
    "needs_plan",
    "random_hadamard",
    "transform",
    "transform_",
    "transformed",
    "untie_",
]
