"""How fast do weights become bytes, and come back?

    python benchmarks/packing.py

Synthetic normal weights, one square matrix; no data needed. Speeds are MB of float32 weights a second (four bytes
a weight, whatever its width), medians over repeats with the slowest beside them. `encode` goes from weights to codes
at known scales, `pack` from codes to bytes, `unpack` and `decode` back; `save` and `load` are the pairs in a row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from common import parser, write_results
from geoquant.grids import Grid, pack_codes, unpack_codes

GRIDS = ("binary", "ternary", *(f"int{bits}" for bits in (2, 3, 4, 5, 6, 7, 8, 16)), "int4:affine:group64", "fp4_e2m1")
STEPS = ("encode", "pack", "unpack", "decode", "save", "load")


def speed(work: Callable[[], object], weights: int, repeats: int) -> dict[str, float]:
    """Return the median and the slowest speed of `work` in MB of float32 weights a second."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    size = 4 * weights / 1e6
    return {"median": size / statistics.median(seconds), "slowest": size / max(seconds)}


def measure(name: str, matrix: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Time every step of one grid and check that the bytes decode to the same bits."""
    grid = Grid.parse(name)
    scales = Grid(grid.format, grid.granularity, "maxabs").fit(matrix)
    codes = grid.encode(matrix, scales)
    packed = pack_codes(codes, grid.bits)
    count, shape = codes.numel(), codes.shape
    work: dict[str, Callable[[], torch.Tensor]] = {
        "encode": lambda: grid.encode(matrix, scales),
        "pack": lambda: pack_codes(codes, grid.bits),
        "unpack": lambda: unpack_codes(packed, grid.bits, count),
        "decode": lambda: grid.decode(codes, scales),
        "save": lambda: pack_codes(grid.encode(matrix, scales), grid.bits),
        "load": lambda: grid.decode(unpack_codes(packed, grid.bits, count).reshape(shape), scales),
    }
    if not torch.equal(work["load"](), grid.decode(codes, scales)):
        raise RuntimeError(f"{name}: packing lost something")
    speeds = {step: speed(work[step], count, repeats) for step in STEPS}
    ratio = 32 * count / grid.storage((shape[0], shape[1])).total_bits
    return {"grid": name, "code_bits": grid.bits, "compression": ratio, "mb_per_s": speeds}


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'MB/s of float32 weights':24}{'smaller by':>11}" + "".join(f"{step:>9}" for step in STEPS))
    for row in rows:
        cells = "".join(f"{row['mb_per_s'][step]['median']:>9.0f}" for step in STEPS)
        print(f"{row['grid']:24}{row['compression']:>10.2f}×{cells}", flush=True)


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    matrix = torch.randn(arguments.size, arguments.size) / 20
    rows = [measure(name, matrix, arguments.repeats) for name in arguments.grids]
    show(rows)
    worst = min(min(row["mb_per_s"][step]["median"] for step in ("pack", "unpack")) for row in rows)
    print(f"slowest of pack and unpack: {worst:.0f} MB/s")
    write_results(arguments, {"weights": matrix.numel(), "rows": rows, "slowest_pack_or_unpack_mb_per_s": worst})


if __name__ == "__main__":
    options = parser("Speed of packing and unpacking.", "packing")
    options.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    options.add_argument("--repeats", type=int, default=9, help="timed repeats of each step")
    options.add_argument("--grids", nargs="+", default=GRIDS, help="grids to measure")
    main(options.parse_args())
