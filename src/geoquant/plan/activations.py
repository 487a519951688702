"""Which inputs does a plan put on a grid, and what does it store for them?

Activation sites are the inputs of the model's layers, under the layers' names, the operands of its additions,
softmaxes and matrix products, and the keys and values that a language model keeps (`geoquant.models.find_operations`),
under names such as ``layer1.0.add:0`` and ``layers.0.attn.cache:keys``. Static grids store one scale and one zero
point each, together in two tensors; dynamic ones store nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from geoquant.errors import PlanError
from geoquant.grids import ActivationGrid
from geoquant.models import Inventory, is_cache_site, select
from geoquant.models.entering import refusal

SCALES, ZEROS = "geoquant:activation.scales", "geoquant:activation.zeros"  # no state-dict name holds a colon

Entries = tuple[tuple[str, str], ...]
Activations = str | ActivationGrid | Mapping[str, str | ActivationGrid | None] | Entries


def activation_entries(inventory: Inventory, wanted: Activations | None, operations: Sequence[str] = ()) -> Entries:
    """Return (activation site, grid) pairs in the order of sites, operations last.

    Args:
        inventory: the model's layers.
        wanted: one grid for the inputs of every layer; or a grid per name or ``re:`` pattern of layers and
            operations (later ones win, None and "none" leave out); or the pairs of another plan of this model.
        operations: names of operands that exist.

    Raises:
        PlanError: a named layer has no input that can be quantized, or keys and values, which come token by token,
            are given a dynamic scale for all tokens.
        LayerNameError: a name or pattern matches nothing.
        GridError: there is no such grid.
    """
    return activation_wishes(inventory, wanted, operations)[0]


def activation_wishes(
    inventory: Inventory, wanted: Activations | None, operations: Sequence[str] = ()
) -> tuple[Entries, tuple[str, ...]]:
    """Return what `activation_entries` does, and the names that are to stay in float although they could be chosen."""
    if wanted is None:
        return (), ()
    refused = {site.name: why for site in inventory.sites if (why := refusal(site, inventory))}
    if isinstance(wanted, tuple):
        select(inventory.names, [name for name, _ in wanted if ":" not in name])
        chosen = {name: _canonical(grid) for name, grid in wanted}
        return _parted(chosen, list(chosen))
    names = [*inventory.names, *operations]
    if not isinstance(wanted, Mapping):
        wanted = dict.fromkeys((name for name in inventory.names if name not in refused), wanted)
    chosen = {}
    for pattern, grid in wanted.items():
        for name in select(names, [pattern]):
            if name not in refused or _canonical(grid) is None:
                chosen[name] = _canonical(grid)
            elif name == pattern:
                raise PlanError(f"the input of '{name}' cannot be quantized: {refused[name]}; leave it out")
    return _parted(chosen, names)


def _canonical(grid: str | ActivationGrid | None) -> str | None:
    return None if grid is None or str(grid) == "none" else str(ActivationGrid.parse(str(grid)))


def _check_kept(entries: Mapping[str, str]) -> None:
    for name, text in entries.items():
        grid = ActivationGrid.parse(text)
        if is_cache_site(name) and grid.dynamic and not grid.per_token:
            raise PlanError(f"'{name}' comes token by token, and {grid} has one scale for all of them; use '...:token'")


def _parted(chosen: Mapping[str, str | None], order: Sequence[str]) -> tuple[Entries, tuple[str, ...]]:
    entries = {name: grid for name, grid in chosen.items() if grid is not None}
    _check_kept(entries)
    return ordered(entries, order), tuple(name for name in order if name in chosen and name not in entries)


def ordered(entries: Mapping[str, str], order: Sequence[str]) -> Entries:
    """Return the pairs in this order of names, those that it lacks last.

    >>> ordered({"add:0": "int8", "b": "int4", "a": "int2"}, ["a", "b"])
    (('a', 'int2'), ('b', 'int4'), ('add:0', 'int8'))
    """
    return tuple((name, entries[name]) for name in dict.fromkeys([*order, *entries]) if name in entries)


def activation_widths(inventory: Inventory, activations: Entries, otherwise: float) -> tuple[float, ...]:
    """Return the bits of the inputs of each site; those that no grid is named for count `otherwise`."""
    grids = dict(activations)
    return tuple(ActivationGrid.parse(grids[n]).bits if n in grids else otherwise for n in inventory.names)


def static_count(activations: Entries) -> int:
    """Return the number of stored scales.

    >>> static_count((("0", "int8"), ("2", "int8:token")))
    1
    """
    return sum(not ActivationGrid.parse(grid).dynamic for _, grid in activations)
