"""Which grid does each layer get, and why? The one object that everything downstream shares.

A plan names a grid per site. When it was solved for (and not written down by hand) it carries its
evidence: the damage table it was solved from, the request, and how far from optimal it can be at most.
That is enough to answer another budget without measuring again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from geoquant import storage
from geoquant.arrays import Floats
from geoquant.errors import FileFormatError, LayerNameError, suggest
from geoquant.grids import ActivationGrid, Grid, Storage
from geoquant.models import Inventory, find_operations, select, take_inventory
from geoquant.plan.activations import Activations, Entries, activation_entries, activation_widths
from geoquant.plan.budget import Budget
from geoquant.plan.engines import CONFIGURATIONS
from geoquant.plan.layout import artifact_bytes
from geoquant.sensitivity import ActivationTable, DamageTable

# Version 2 may hold multiplications, budgets of bit-operations and latency, and activation grids, version 3 damages of
# activations and their average bits; older ones, which have none of them, are read too.
PLAN_VERSION = 3

Objective = str | Callable[[Floats], float]


@dataclass(frozen=True)
class Request:
    """What was asked of the solver.

    Attributes:
        budget: upper limits.
        solver: a registered allocation solver.
        objective: "sum", "worst", or "custom" for a function of the caller's.
        menu: the only grids or widths allowed, or None for every measured grid.
        lower: least width, per name or pattern (``"re:.*"`` for all).
        upper: largest width, likewise.
        fixed: grid or width that a site must take, per name or pattern.
        fused: names or patterns of sites that must share a grid.
        activations: (activation site, grid) pairs that are given, whose stored scales count.
        in_float: activation sites that stay in float although their grid could be chosen.
    """

    budget: Budget
    solver: str = "milp"
    objective: str = "sum"
    menu: tuple[str | int, ...] | None = None
    lower: tuple[tuple[str, float], ...] = ()
    upper: tuple[tuple[str, float], ...] = ()
    fixed: tuple[tuple[str, str | int], ...] = ()
    fused: tuple[str | tuple[str, ...], ...] = ()
    activations: Entries = ()
    in_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Optimality:
    """How good the plan is at its own objective.

    Attributes:
        objective: value reached, in the table's unit.
        lower_bound: no plan within the budget has a smaller objective (proven, for this table).
        gap: (objective − lower_bound) / |objective|; 0 when optimal.
    """

    objective: float
    lower_bound: float
    gap: float


@dataclass(frozen=True)
class Evidence:
    """Where a solved plan comes from.

    Attributes:
        table: damages of the weights.
        request: what was asked.
        optimality: how good the plan is at that, weights and chosen activations together.
        reasons: one per site.
        data: fingerprint of the calibration batches.
        seed: of every random draw.
        macs: multiplications per site.
        inputs: damages of the activations; None where they were not measured.
    """

    table: DamageTable
    request: Request
    optimality: Optimality
    reasons: tuple[str, ...]
    data: str
    seed: int
    macs: tuple[int, ...] = ()
    inputs: ActivationTable | None = None


@dataclass(frozen=True)
class Plan:
    """A grid for every quantizable site of one model, and for those of its activations that are quantized.

    Attributes:
        inventory: the model's sites.
        names: the grid of each site, in their order.
        evidence: where a solved plan comes from.
        activations: (activation site, grid) pairs; empty where activations stay in float.

    >>> plan = uniform_plan(nn.Sequential(nn.Linear(8, 4, bias=False)), "int4:tensor")
    >>> plan.average_bits   # 32 weights at 4 bits and one fp16 scale: (128 + 16) / 32
    4.5
    >>> plan.bits
    {'0': 4.5}
    """

    inventory: Inventory
    names: tuple[str, ...]
    evidence: Evidence | None = None
    activations: Entries = ()

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The grid of each site, in the order of `inventory.sites`."""
        return tuple(Grid.parse(name) for name in self.names)

    @cached_property
    def activation_grids(self) -> dict[str, ActivationGrid]:
        """The grid of each quantized activation, by name."""
        return {name: ActivationGrid.parse(grid) for name, grid in self.activations}

    @cached_property
    def costs(self) -> tuple[Storage, ...]:
        """What each site takes on disk, header entries apart."""
        return tuple(
            grid.storage(site.matrix_shape) for site, grid in zip(self.inventory.sites, self.grids, strict=True)
        )

    @cached_property
    def bytes(self) -> int:
        """Exact size of the artifact on disk, header and unquantized tensors included."""
        return artifact_bytes(self.inventory, self.grids, self.activations)

    @property
    def average_bits(self) -> float:
        """Stored bits of all sites over the number of their weights."""
        return sum(cost.total_bits for cost in self.costs) / self.inventory.weights

    @property
    def bits(self) -> dict[str, float]:
        """Stored bits per weight of each site."""
        pairs = zip(self.inventory.sites, self.costs, strict=True)
        return {site.name: cost.total_bits / site.weights for site, cost in pairs}

    @property
    def bit_operations(self) -> float | None:
        """Multiplications × weight bits × activation bits of one sample; None where they were not counted."""
        if self.evidence is None or not self.evidence.macs:
            return None
        other = self.evidence.request.budget.activation_bits
        widths = activation_widths(self.inventory, self.activations, other)
        return sum(
            count * grid.bits * width for count, grid, width in zip(self.evidence.macs, self.grids, widths, strict=True)
        )

    @property
    def average_activation_bits(self) -> float | None:
        """Bits per number that enters a measured activation site, as `Budget` counts; None where none was measured."""
        if self.evidence is None or self.evidence.inputs is None:
            return None
        inputs, other = self.evidence.inputs, self.evidence.request.budget.activation_bits
        grids = self.activation_grids
        pairs = zip(inputs.sites, inputs.elements, strict=True)
        total = sum(count * (grids[name].bits if name in grids else other) for name, count in pairs)
        return total / sum(inputs.elements)

    @property
    def latency(self) -> float | None:
        """Milliseconds by the table of the budget; None where there is none."""
        times = None if self.evidence is None else self.evidence.request.budget.latency_table
        if times is None:
            return None
        pairs, entering = zip(self.inventory.names, self.names, strict=True), dict(self.activations)
        layers = sum(times.milliseconds(site, grid, entering.pop(site, None)) for site, grid in pairs)
        return times.base + layers + sum(times.operand(name, grid) for name, grid in entering.items())

    def grid(self, name: str) -> Grid:
        """Return the grid of the site called `name`."""
        if name not in self.inventory.names:
            raise LayerNameError(f"the plan has no layer '{name}'{suggest(name, self.inventory.names)}")
        return self.grids[self.inventory.names.index(name)]

    def with_activations(self, activations: Activations | None, model: nn.Module | None = None) -> Plan:
        """Return the same plan with other activation grids.

        Args:
            activations: one grid for the inputs of all layers, a grid per name or pattern, or None for float.
            model: needed to name additions, softmaxes and matrix products (see `find_operations`).

        >>> plan = uniform_plan(nn.Sequential(nn.Linear(8, 4)), "int4").with_activations("int8:affine")
        >>> plan.activations
        (('0', 'int8:affine'),)
        """
        operations = () if model is None or not isinstance(activations, Mapping) else find_operations(model)
        found = activation_entries(self.inventory, activations, operations)
        evidence = self.evidence
        if evidence is not None:  # other budgets keep what is given here
            measured = () if evidence.inputs is None else evidence.inputs.sites
            others = tuple(name for name in measured if name not in dict(found))
            evidence = replace(evidence, request=replace(evidence.request, activations=found, in_float=others))
        return replace(self, activations=found, evidence=evidence)

    @property
    def damages(self) -> tuple[float | None, ...]:
        """Predicted damage of each site at its grid; None where nothing was measured."""
        if self.evidence is None:
            return (None,) * len(self.names)
        table = self.evidence.table
        return tuple(
            table.row(site)[table.grids.index(grid)] if site in table.sites and grid in table.grids else None
            for site, grid in zip(self.inventory.names, self.names, strict=True)
        )

    @property
    def input_damages(self) -> dict[str, float | None]:
        """Predicted damage of each quantized activation at its grid; None where that was not measured."""
        inputs = None if self.evidence is None else self.evidence.inputs
        return {
            name: inputs.damages.row(name)[inputs.grids.index(grid)]
            if inputs is not None and name in inputs.sites and grid in inputs.grids
            else None
            for name, grid in self.activations
        }

    @property
    def key(self) -> tuple[str, ...]:
        """What tells two plans of one model apart: the grid of each site, and those of activations."""
        return (*self.names, *(f"{name}={grid}" for name, grid in self.activations))

    def resolve(
        self,
        *,
        average_bits: float | None = None,
        bytes: int | None = None,
        bit_operations: float | None = None,
        latency: float | None = None,
        average_activation_bits: float | None = None,
        objective: Objective | None = None,
        **changes: Any,
    ) -> Plan:
        """Answer another budget from this plan's own evidence, without measuring again.

        Args:
            average_bits: new limit on stored bits per weight (see `Budget`).
            bytes: new limit on the size of the artifact.
            bit_operations: new limit on multiplications × bits; activations in float count what they did.
            latency: new limit in milliseconds, by the table of the old budget (or ``latency_table=`` of another).
            average_activation_bits: new limit on the bits per number that enters a measured activation site.
            objective: needed again when the plan was solved for a function of the caller's.
            changes: other parts of the request to replace: ``solver``, ``menu``, ``lower``, ``upper``,
                ``fixed``, ``fused`` (see `allocate`).

        Raises:
            PlanError: the plan was written by hand and holds no evidence.
            BudgetError: nothing fits the limits, or a latency is asked for and there is no table of times.
        """
        from geoquant.plan.solving import resolve

        old = None if self.evidence is None else self.evidence.request.budget
        times = changes.pop("latency_table", None if old is None else old.latency_table)
        activation_bits = changes.pop("activation_bits", 32 if old is None else old.activation_bits)
        budget = Budget(average_bits, bytes, bit_operations, latency, times, activation_bits, average_activation_bits)
        return resolve(self, budget, objective, **changes)

    def save(self, path: Path | str) -> Path:
        """Write the plan as one JSON file, atomically (``plan.json`` inside when `path` is a folder)."""
        target = Path(path)
        target = target if target.suffix == ".json" else target / "plan.json"
        storage.write_document(target, "plan", PLAN_VERSION, self.to_json())
        return target

    def to_json(self) -> storage.Json:
        """Return the plan as plain JSON values."""
        document: storage.Json = _ADAPTER.dump_python(self, mode="json")
        return document

    @staticmethod
    def load(path: Path | str) -> Plan:
        """Read a plan from its file or folder; `FileFormatError` when it is truncated or was edited."""
        path = Path(path)
        path = path / "plan.json" if path.is_dir() else path
        _, content = storage.read_document(path, "plan", PLAN_VERSION)
        try:
            plan = _ADAPTER.validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise FileFormatError(f"{path} does not hold a valid plan: {place}: {first['msg']}") from error
        if len(plan.grids) != len(plan.inventory.sites):
            raise FileFormatError(f"{path} names {len(plan.names)} grids for {len(plan.inventory.sites)} layers")
        plan.activation_grids  # noqa: B018 (parsed once here, so that a wrong name is found on loading)
        return plan

    def to(self, engine: str) -> Any:
        """Return the plan as the configuration of another engine (see `geoquant.plan.engines`).

        Raises:
            UnknownNameError: nobody has registered that engine.
        """
        return CONFIGURATIONS[engine](self)

    def to_torchao(self) -> Any:
        """Return what ``torchao.quantization.quantize_`` takes; see `geoquant.export.torchao_config`."""
        return self.to("torchao")

    def __str__(self) -> str:
        from geoquant.plan.text import plan_text

        return plan_text(self)


_ADAPTER = TypeAdapter(Plan)


def uniform_plan(
    model: nn.Module | Inventory,
    grid: str | Grid,
    exceptions: Mapping[str, str | Grid] | None = None,
    activations: Activations | None = None,
) -> Plan:
    """Give every site the same grid, apart from `exceptions` (name or pattern → grid; later ones win).

    `activations` puts inputs on grids too (see `Plan.with_activations`).
    """
    inventory = model if isinstance(model, Inventory) else take_inventory(model)
    chosen = dict.fromkeys(inventory.names, str(Grid.parse(str(grid))))
    for pattern, other in (exceptions or {}).items():
        for name in select(inventory.names, [pattern]):
            chosen[name] = str(Grid.parse(str(other)))
    plan = Plan(inventory, tuple(chosen.values()))
    return plan.with_activations(activations, None if isinstance(model, Inventory) else model)
