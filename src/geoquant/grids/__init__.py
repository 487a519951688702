"""Where may weights lie, and what does it cost? Number formats, scales, packing, and the `Grid` of them all.

Grids see a weight as a matrix (channels, fan_in) and know nothing of models. A grid has a name::

    int3                      3-bit integers per channel, least-squares scales in fp16
    int3:affine:group64       with zero points, a scale for each 64 weights
    int4:narrow:tensor:maxabs the textbook symmetric grid
    binary, ternary           1 and 1.6 bits
    fp8_e4m3, fp4_e2m1:e8m0   small floats; blocks of 32 under power-of-two scales
    fp16, bf16, fp32          stored as they are

so `Grid.parse(name)` and `str(grid)` are inverse to each other, with defaults left out of the name.
"""

from geoquant.grids.activation import RANGE_METHODS, ActivationGrid, ActivationScale
from geoquant.grids.activation_quantizer import NOT_SEEN, ActivationQuantizer
from geoquant.grids.cost import Storage, StoredTensor
from geoquant.grids.floats import Float
from geoquant.grids.formats import FORMATS, Binary, Defaults, Integer, LevelSet, NumberFormat, Ternary, clip_limits
from geoquant.grids.granularity import Granularity, PerChannel, PerGroup, PerTensor, Unscaled
from geoquant.grids.grid import SCALINGS, Grid
from geoquant.grids.packing import TRIT_BITS, pack_codes, packed_bytes, unpack_codes
from geoquant.grids.quantized import QuantizedMatrix
from geoquant.grids.scale_dtypes import SCALE_DTYPES
from geoquant.grids.scales import Scales
from geoquant.grids.ste import straight_through

__all__ = [
    "FORMATS",
    "NOT_SEEN",
    "RANGE_METHODS",
    "SCALE_DTYPES",
    "SCALINGS",
    "TRIT_BITS",
    "ActivationGrid",
    "ActivationQuantizer",
    "ActivationScale",
    "Binary",
    "Defaults",
    "Float",
    "Granularity",
    "Grid",
    "Integer",
    "LevelSet",
    "NumberFormat",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "QuantizedMatrix",
    "Scales",
    "Storage",
    "StoredTensor",
    "Ternary",
    "Unscaled",
    "clip_limits",
    "pack_codes",
    "packed_bytes",
    "straight_through",
    "unpack_codes",
]
