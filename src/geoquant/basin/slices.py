"""What does the loss look like between the float weights and the quantized ones?

Slices as values: a line from the float weights through the rounded ones and beyond, and a plane through the float
weights and two codewords. Both carry the basin's edge (the tolerance), the codewords that lie on them, and the length
of a grid step. A slice of a space with a hundred thousand dimensions shows what it cuts, and nothing of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from geoquant.basin.directions import Cell, Direction
from geoquant.basin.rise import LossRise, Point
from geoquant.errors import ModelError
from geoquant.progress import task

MARGIN = 0.25
"""How far a plane reaches beyond its points, as a share of their extent."""


@dataclass(frozen=True)
class Marker:
    """A named point of a slice: "float", "rounded", "trained", ...; x and y in grid steps."""

    name: str
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Line:
    """The rise of the loss along one direction.

    Attributes:
        direction: its name.
        step: where one grid step (root mean square over the weights) lies, in multiples of the direction.
        places: in multiples of the direction.
        rise, stderr: at each place, nats per prediction.
        tolerance: the basin's edge.
        markers: points on the line; x in multiples of the direction.
    """

    direction: str
    step: float
    places: tuple[float, ...]
    rise: tuple[float, ...]
    stderr: tuple[float, ...]
    tolerance: float
    markers: tuple[Marker, ...]


@dataclass(frozen=True)
class Plane:
    """The rise of the loss on the plane through three points.

    Attributes:
        xs: along the way from the float weights to the first codeword, in grid steps.
        ys: across it, in grid steps.
        rise: (ys, xs), nats per prediction.
        tolerance: the basin's edge.
        markers: the three points; x and y in grid steps.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    rise: tuple[tuple[float, ...], ...]
    tolerance: float
    markers: tuple[Marker, ...]


def loss_line(cell: Cell, way: Direction, rise: LossRise, tolerance: float, *, points: int = 25) -> Line:
    """Evaluate the loss from a step before the float weights to twice the way.

    Args:
        cell: the float weights and their grid.
        way: the direction; its end is marked as "rounded" when it is the displacement.
        rise: the loss.
        tolerance: the basin's edge.
        points: evaluations.
    """
    places = np.linspace(-0.5, 2.0, points).tolist()
    found = []
    with task("slicing the loss", points) as advance:
        for place in places:
            found.append(rise.at(way.at(cell.origin, place)))
            advance()
    end = (Marker("rounded", 1.0),) if way.kind == "displacement" else ()
    length = cell.steps(way)
    return Line(
        way.name,
        1 / length if length else math.inf,
        tuple(places),
        tuple(mean.value for mean in found),
        tuple(mean.stderr for mean in found),
        tolerance,
        (Marker("float", 0.0), *end),
    )


def loss_plane(
    cell: Cell, codewords: Mapping[str, Point], rise: LossRise, tolerance: float, *, points: int = 11
) -> Plane:
    """Evaluate the loss on the plane through the float weights and two other points, such as codewords.

    Only the weights of the plan's sites move; norms and biases stay those of the float model, so a codeword whose norms
    were trained along can look worse here than it is.

    Args:
        cell: the float weights and their grid.
        codewords: two points by the name of their marker; the first gives the x axis.
        rise: the loss.
        tolerance: the basin's edge.
        points: evaluations along each axis.

    Raises:
        ModelError: there are not two, or the first is where the float weights are.
    """
    if len(codewords) != 2:
        raise ModelError(f"a plane needs two points beside the float weights, got {len(codewords)}")
    (first, one), (second, two) = ((name, cell.towards(point)) for name, point in codewords.items())
    scale = one.norm / cell.steps(one) if cell.steps(one) else 0.0  # weight units per grid step
    if not scale:
        raise ModelError(f"the weights of '{first}' are the float weights; there is no plane through them")
    x_axis = one.scaled(scale)
    along = _inner(two, x_axis) / scale**2
    rest = _combined(two, 1.0, x_axis, -along)
    y_axis = rest.scaled(scale) if rest.norm > 1e-6 * one.norm else cell.random(0, 0).scaled(scale)
    across = _inner(two, y_axis) / scale**2
    markers = (Marker("float", 0.0), Marker(first, one.norm / scale), Marker(second, along, across))
    xs, ys = _extent([m.x for m in markers], points), _extent([m.y for m in markers], points)
    rows = []
    with task("slicing the loss", points * points) as advance:
        for y in ys:
            row = []
            for x in xs:
                row.append(rise.at(_combined(x_axis, x, y_axis, y).at(cell.origin, 1.0)).value)
                advance()
            rows.append(tuple(row))
    return Plane(xs, ys, tuple(rows), tolerance, markers)


def _inner(one: Direction, two: Direction) -> float:
    return sum(float((one.moves[name].double() * two.moves[name].double()).sum()) for name in one.moves)


def _combined(one: Direction, a: float, two: Direction, b: float) -> Direction:
    moves: dict[str, Tensor] = {name: a * one.moves[name] + b * two.moves[name] for name in one.moves}
    return Direction("combination", "combination", moves)


def _extent(values: Sequence[float], points: int) -> tuple[float, ...]:
    low, high = min(values), max(values)
    margin = MARGIN * max(high - low, 0.2)
    return tuple(np.linspace(low - margin, high + margin, points).tolist())
