"""Which products run on a device's own low-precision units, and how?

Where the units are there, products run in int8 or fp8 on the codes and scales of the simulation, and give the same
numbers up to the order of float32 sums; bf16 and fp16 products take their operands in that type and round their
result to it, as autocast does. `usable` chooses by level and device.

In 8 bits these are the forward product and the one for the weight gradient of linear layers. The product for the
input sums over output channels, each of which has a scale of its own, so it stays simulated, and so do convolutions.
In 16 bits it is every product.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
# Levels that are types of their own.
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@lru_cache(maxsize=8)
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def usable(name: str, device: torch.device) -> bool:
    """Say whether products of two operands at level `name` have a unit on `device`.

    int8 tensor cores come with compute capability 7.5, bf16 with 8.0, fp8 with 8.9. A CPU has none that is worth it.

    >>> usable("int8", torch.device("cpu"))
    False
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    least = {"int8": (7, 5), "fp16": (7, 0), "bf16": (8, 0), "fp8_e4m3": (8, 9)}.get(name)
    return least is not None and _capability(device.index or 0) >= least


def matmul(a: Tensor, b: Tensor, name: str) -> Tensor:
    """Return a @ b, float32, for operands whose entries are codes of level `name`.

    Args:
        a: (m, k) float32 codes: integers for int8, −127 to 127 or 0 to 255, or numbers of the float format.
        b: (k, n), the same; integers from −127 to 127.
        name: ``int8``, ``fp8_e4m3``, ``fp16`` or ``bf16``.

    >>> matmul(torch.tensor([[2.0, -3.0]]), torch.tensor([[5.0], [4.0]]), "int8")
    tensor([[-2.]])
    """
    if name in HALF:
        return (a.to(HALF[name]) @ b.to(HALF[name])).float()
    rows, columns = a.shape[0], b.shape[1]
    a, b = _padded(a, 32, 16), _padded(b, 16, 16)
    if name == "int8":
        # Where nothing is negative codes go up to 255: 128 less fits, and its share of the sum is known.
        shift = 128.0 * (a.amax() > 127)
        found = torch._int_mm((a - shift).to(torch.int8), b.to(torch.int8).contiguous()) + shift * b.sum(0)
    else:
        one = torch.ones((), device=a.device)
        left, right = a.to(_FP8[name]), b.to(_FP8[name]).t().contiguous().t()
        found = torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return found[:rows, :columns]


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Add zero rows and columns up to multiples that the kernels want: zeros change no sum."""
    short = -matrix.shape[0] % rows
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % columns, 0, short))
