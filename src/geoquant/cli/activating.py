"""Which activation grids does the command line ask for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from torch import nn

from geoquant.cli.inputs import say
from geoquant.grids import ActivationGrid
from geoquant.models import Inventory, find_operations
from geoquant.plan import Entries, Plan, activation_entries
from geoquant.quantize import quantized_state

ActivationGrids = Annotated[
    list[str] | None,
    typer.Option(
        "--activations",
        help="Grid for the inputs of every layer, such as int8:affine or int4:affine:token; or NAME=GRID (also of "
        "operands such as layer1.0.add:0; patterns with re:; none for float). Repeatable, later ones win.",
    ),
]
ActivationRange = Annotated[
    str | None,
    typer.Option(help="Range that static activation grids cover: minmax, percentile[NUMBER], mse (default), entropy."),
]

_LAYERS = "re:[^:]*"  # operands have a colon in their name


def read_activations(
    model: nn.Module, inventory: Inventory, items: Sequence[str] | None, method: str | None, max_drop: float | None
) -> Entries | None:
    """Return (activation site, grid) pairs; None where the command line says nothing."""
    if items and max_drop is not None:
        raise typer.BadParameter("--max-drop searches with float activations: take its plan.json, then give --plan")
    if not items:
        if method is not None:
            raise typer.BadParameter("--activation-range is there for static grids: give --activations too")
        return None
    wanted: dict[str, str] = {}
    for item in items:
        name, _, grid = item.rpartition("=")
        wanted.pop(name or _LAYERS, None)
        wanted[name or _LAYERS] = grid
    found = activation_entries(inventory, wanted, find_operations(model))
    if method is None:
        return found
    return tuple((name, str(ActivationGrid.parse(grid).with_range(method))) for name, grid in found)


def with_inputs(plan: Plan, entries: Entries | None) -> Plan:
    """Return `plan` with other activation grids, where the command line names some."""
    return plan if entries is None else plan.with_activations(entries)


def tell_what_stays(model: nn.Module) -> None:
    """Say which activations of a quantized model stay in float although one may expect otherwise."""
    for line in quantized_state(model).in_float:
        say(f"stays in float: {line}")
