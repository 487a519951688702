"""Which activation grids does the command line ask for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from torch import nn

from geoquant.cli.inputs import say
from geoquant.errors import ModelError
from geoquant.grids import ActivationGrid
from geoquant.models import Inventory, cache_sites, is_cache_site
from geoquant.plan import Budget, Entries, Plan, activation_wishes
from geoquant.quantize import is_quantized, key_value_grid, quantized_state

DEFAULT_ACTIVATIONS = ",".join(f"int{bits}:affine" for bits in range(2, 9))

ActivationGrids = Annotated[
    list[str] | None,
    typer.Option(
        "--activations",
        help="Grid for the inputs of every layer, such as int8:affine or int4:affine:token; or NAME=GRID (also of "
        "operands such as layer1.0.add:0 and model.layers.0.self_attn.cache:keys; patterns with re:; none for float). "
        "Repeatable, later ones win. Given here, not chosen.",
    ),
]
ActivationRange = Annotated[
    str | None,
    typer.Option(help="Range that static activation grids cover: minmax, percentile[NUMBER], mse (default), entropy."),
]
ActivationBits = Annotated[
    float | None,
    typer.Option(
        "--activation-bits",
        help="Budget: average bits of the inputs of layers, each weighted by how many numbers enter there. Which input "
        "gets how many is chosen together with the weights.",
    ),
]
OfferedGrids = Annotated[
    str | None,
    typer.Option(
        "--activation-grids",
        help="Comma-separated activation grids to measure, for --activation-bits, --bit-operations and --latency to "
        f"choose from, such as {DEFAULT_ACTIVATIONS}.",
    ),
]
ActivationSites = Annotated[
    list[str] | None,
    typer.Option(
        "--activation-sites",
        help="Which activations are measured and chosen: name or `re:` pattern, `re:.*` for the operands of additions, "
        "products and softmaxes too (repeatable). The inputs of all layers by default.",
    ),
]

_LAYERS = "re:[^:]*"  # operands have a colon in their name


def read_activations(
    inventory: Inventory, operations: Sequence[str], items: Sequence[str] | None, method: str | None
) -> Entries | None:
    """Return (activation site, grid) pairs, ``none`` for float; None where the command line says nothing."""
    if not items:
        return None
    wanted: dict[str, str] = {}
    for item in items:
        name, _, grid = item.rpartition("=")
        wanted.pop(name or _LAYERS, None)
        wanted[name or _LAYERS] = grid
    given, in_float = activation_wishes(inventory, wanted, operations)
    return (*((name, ranged(grid, method)) for name, grid in given), *((name, "none") for name in in_float))


def keys_and_values(model: nn.Module, bits: int) -> list[str]:
    """Return the ``--activations`` that put every key and value on the grid of `bits`.

    Raises:
        ModelError: the model keeps none.
    """
    sites = cache_sites(model)
    if not sites:
        raise ModelError(f"{type(model).__name__} keeps no keys and values; leave --kv-bits out")
    return [f"{name}={key_value_grid(bits)}" for name in sites]


def kept_by_plan(model: nn.Module) -> Plan | None:
    """Return the plan of a quantized model where it puts keys and values on grids."""
    plan = quantized_state(model).plan if is_quantized(model) else None
    return plan if plan is not None and any(map(is_cache_site, plan.activation_grids)) else None


def ranged(grid: str, method: str | None) -> str:
    """Return the activation grid with the range of the command line."""
    return grid if method is None else str(ActivationGrid.parse(grid).with_range(method))


def read_offer(
    grids: str | None, activation_bits: float | None, budget: Budget | None, given: bool, method: str | None
) -> tuple[str, ...]:
    """Return the activation grids to measure; none unless a budget can choose among them.

    Args:
        grids: what the command line says.
        activation_bits: the limit that offers a default.
        budget: other limits that may depend on activations; None where there is none.
        given: whether activation grids are given.
        method: range of static grids.
    """
    others = budget is not None and any(limit is not None for limit in (budget.bit_operations, budget.latency))
    if grids is not None and activation_bits is None and not others:
        raise typer.BadParameter(
            "--activation-grids offers a choice to --activation-bits, --bit-operations or --latency"
        )
    text = grids or ("" if activation_bits is None else DEFAULT_ACTIVATIONS)
    if method is not None and not (text or given):
        raise typer.BadParameter("--activation-range is there for static grids: give --activations too")
    return tuple(ranged(part.strip(), method) for part in text.split(",") if part.strip())


def with_inputs(plan: Plan, entries: Entries | None) -> Plan:
    """Return `plan` with other activation grids, where the command line names some."""
    return plan if entries is None else plan.with_activations(entries)


def tell_what_stays(model: nn.Module) -> None:
    """Say what was rounded without its inputs, and which activations stay in float against what one may expect."""
    unseen = quantized_state(model).unseen
    if unseen:
        say(f"rounded without their inputs, which no batch showed: {', '.join(unseen)}")
    for line in quantized_state(model).in_float:
        say(f"stays in float: {line}")
