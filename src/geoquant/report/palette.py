"""Which colour, dash and marker does a method get?

Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers; yellow is left out,
it vanishes on white. Uniform baselines are grey and dashed, so that colour always means "chosen by
evidence". Markers differ too: nothing hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from geoquant.report.axes import OTHER_GRIDS, family
from geoquant.report.sweep import Point

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREYS = ("#767676", "#8c8c8c", "#5c6670", "#8a7f78")
DASHES = ("dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x", "star", "hexagon")
SCALE = "Cividis"

# The same shapes in matplotlib's words.
MATPLOTLIB_MARKERS = dict(zip(SYMBOLS, ("o", "s", "D", "^", "v", "X", "*", "h"), strict=True))
MATPLOTLIB_DASHES = {"none": "none", "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}


@dataclass(frozen=True)
class Style:
    """How one method is drawn; a dash of "none" draws no line between its points."""

    color: str
    dash: str
    symbol: str


def is_uniform(method: str) -> bool:
    """Say whether a method gives every layer the same grid.

    >>> is_uniform("uniform int:affine"), is_uniform("one_layer_kl + milp")
    (True, False)
    """
    return method.lower().startswith("uniform")


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method a style of its own, in order of first appearance.

    >>> styles(["geoquant", "uniform"])["uniform"]
    Style(color='#767676', dash='dash', symbol='circle')
    """
    result: dict[str, Style] = {}
    guided = uniform = 0
    for method in dict.fromkeys(methods):
        if is_uniform(method):
            symbol = SYMBOLS[uniform % len(SYMBOLS)]
            # Unlike grids (ternary, fp8 …) lie on no curve together.
            dash = "none" if method.endswith(OTHER_GRIDS) else DASHES[uniform % len(DASHES)]
            result[method] = Style(GREYS[uniform % len(GREYS)], dash, symbol)
            uniform += 1
        else:
            # After six colours the markers have moved on, so the pair stays unique up to 24 methods.
            result[method] = Style(OKABE_ITO[guided % len(OKABE_ITO)], "solid", SYMBOLS[guided % len(SYMBOLS)])
            guided += 1
    return result


def series(points: Sequence[Point]) -> dict[str, tuple[Point, ...]]:
    """Gather the points that one line connects, smallest first.

    Uniform grids of several families under one method become a line each: a line that jumped between
    symmetric and affine grids would show nothing.
    """
    families = {method: {family(p.label) for p in points if p.method == method} for method in _methods(points)}
    lines: dict[str, list[Point]] = {}
    for point in dict.fromkeys(points):
        split = is_uniform(point.method) and len(families[point.method]) > 1
        lines.setdefault(f"{point.method}, {family(point.label)}" if split else point.method, []).append(point)
    return {name: tuple(sorted(line, key=lambda point: point.bytes)) for name, line in lines.items()}


def _methods(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(point.method for point in points))
