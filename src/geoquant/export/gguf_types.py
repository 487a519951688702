"""Which type of llama.cpp holds a weight, exactly where one can?

GGUF's Q4_0, Q5_0 and Q8_0 are integers of 4, 5 and 8 bits with one float16 scale per 32 weights of a row; TQ1_0 and
TQ2_0 are −1, 0, 1 with one scale per 256. A grid whose levels are integers goes into the narrowest of these that
holds them, so narrower widths are widened and nothing is rounded again: codes are kept, and scales too where they are
float16 numbers. A zero point becomes one more bit. Rows that blocks do not divide, groups that blocks straddle and
other formats fall back to a float type. Sizes are those of the ``gguf`` package; how fast llama.cpp computes with a
type is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from geoquant.errors import ExportError
from geoquant.export.protocol import StoredLayer
from geoquant.grids import Grid, PerGroup
from geoquant.models import Site

BLOCKS = {  # weights and bytes of a block
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q5_0": (32, 22),
    "Q4_0": (32, 18),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}
FALLBACKS = ("F16", "F32", "BF16")
TERNARIES = ("TQ1_0", "TQ2_0")
_INTEGERS = (("Q4_0", 4), ("Q5_0", 5), ("Q8_0", 8))
_STORED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class Choice:
    """A type for one weight.

    Attributes:
        type: its name.
        reason: why it is not the plan's own width; empty where it is.
    """

    type: str
    reason: str = ""

    @property
    def coded(self) -> bool:
        """Whether codes are kept; else the values are stored as floats."""
        return BLOCKS[self.type][0] > 1

    def bytes(self, weights: int) -> int:
        """Return bytes of so many weights."""
        count, size = BLOCKS[self.type]
        return weights // count * size


def choose_type(site: Site, grid: Grid, fallback: str = "F16", ternary: str = "TQ1_0") -> Choice:
    """Return the narrowest type that holds `grid` at `site`.

    Args:
        site: a linear layer or an embedding.
        grid: its grid.
        fallback: the float type for what no block type holds.
        ternary: TQ1_0 (1.69 bits) or TQ2_0 (2.06 bits, simpler to unpack).

    >>> choose_type(Site("up", "up.weight", "linear", (8, 64)), Grid.parse("int3:group32"))
    Choice(type='Q4_0', reason='3-bit codes take 4 bits')
    >>> choose_type(Site("down", "down.weight", "linear", (64, 172)), Grid.parse("int4"))
    Choice(type='F16', reason='rows of 172 weights are not whole blocks of 32')
    """
    if grid.format.value_dtype is not None:
        return Choice(_STORED[grid.format.tokens[0]])
    reach = _reach(grid)
    if reach is None:
        return Choice(fallback, f"no type of llama.cpp has the levels of {grid.format.tokens[0]}")
    low, high = reach
    bits = next(bits for bits in range(2, 32) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))
    if bits > 8:
        return Choice("F32" if bits > 9 else fallback, f"{bits}-bit integers exceed the 8 bits of Q8_0")
    types = [(ternary, 2)] if low >= -1 and high <= 1 else []
    refusals = []
    for name, width in [*types, *_INTEGERS]:
        if bits > width:
            continue
        refusal = _refusal(site, grid, BLOCKS[name][0])
        if not refusal:
            return Choice(name, _widening(grid, name, width))
        refusals.append(refusal)
    return Choice(fallback, refusals[-1])


def _reach(grid: Grid) -> tuple[int, int] | None:
    """Return the lowest and highest integer of a grid without its zero points; None where levels are no integers."""
    levels = grid.format.levels
    if levels is None or not bool((levels == levels.round()).all()):
        return None
    low, high = int(levels[0]), int(levels[-1])
    return (low - high, high) if grid.format.has_zero_point else (low, high)


def _refusal(site: Site, grid: Grid, block: int) -> str:
    fan_in = site.matrix_shape[1]
    if fan_in % block:
        return f"rows of {fan_in} weights are not whole blocks of {block}"
    size = grid.granularity.size if isinstance(grid.granularity, PerGroup) else block
    return "" if size % block == 0 or size >= fan_in else f"groups of {size} weights are not whole blocks of {block}"


def _widening(grid: Grid, name: str, width: int) -> str:
    if grid.format.has_zero_point:
        return f"{grid.bits:g}-bit codes with zero points take {width} bits without"
    if grid.bits < width and name not in TERNARIES:
        return f"{grid.bits:g}-bit codes take {width} bits"
    if name in TERNARIES and grid.bits < 1.6:
        return "1-bit codes take a trit"
    return ""


def foretell_layer(site: Site, name: str, grid: Grid, choice: Choice) -> StoredLayer:
    """Return what a file says of a weight called `name` there."""
    size = choice.bytes(site.weights)
    planned = sum(part.bytes for part in grid.stored(site.matrix_shape))
    reason = choice.reason or (f"a scale per {BLOCKS[choice.type][0]} weights" if size > planned else "")
    return StoredLayer(name, str(grid), choice.type, size, reason)


def check_choice(word: str, given: str, known: tuple[str, ...]) -> str:
    """Return `given`; `ExportError` when it is not among `known`.

    >>> check_choice("fallback", "F64", FALLBACKS)
    Traceback (most recent call last):
    ...
    geoquant.errors.ExportError: fallback=F64 is not known; choose one of F16, F32, BF16
    """
    if given not in known:
        raise ExportError(f"{word}={given} is not known; choose one of {', '.join(known)}")
    return given
