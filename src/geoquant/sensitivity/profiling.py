"""The evidence on one model: what every choice costs, what the model is like, and how well that is known.

A profile is measured once and read often: every budget, solver and objective is answered from it
without touching the model again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from geoquant import storage
from geoquant.cluster import Cluster
from geoquant.data import collect, fingerprint
from geoquant.errors import FileFormatError, PlanError, suggest
from geoquant.geometry import ModelGeometry, measure_geometry
from geoquant.grids import ActivationGrid, Grid
from geoquant.models import Forward, Inventory, check_finite, find_sites, inference, predict, select, take_inventory
from geoquant.sensitivity.defaults import DEFAULT_GRIDS, default_predictors
from geoquant.sensitivity.one_input_kl import LAYERS, ActivationTable, find_activations, measure_activations
from geoquant.sensitivity.operations import multiplications
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Predictor, Subject
from geoquant.sensitivity.sharding import measure_sharded

# Version 2 may hold geometry, version 3 multiplications, version 4 damages of activations; older ones are read as well.
PROFILE_VERSION = 4


@dataclass(frozen=True)
class Profile:
    """Damage of every (site, grid) by one or more predictors, for one model and one calibration set.

    Attributes:
        inventory: the model's sites and other tensors.
        grids: canonical names of the measured grids.
        tables: one `DamageTable` per predictor, first one is the default.
        data: fingerprint of the calibration batches.
        seed: of every random draw.
        seconds: wall time per predictor; left out of comparisons, two runs never agree on it.
        geometry: what the model is like on the same data; None when it was not measured.
        macs: multiply-accumulates of each site of the inventory for one sample; empty when they were not counted.
        activations: damage of each (activation site, activation grid); None when it was not measured.
    """

    inventory: Inventory
    grids: tuple[str, ...]
    tables: tuple[DamageTable, ...]
    data: str
    seed: int
    seconds: tuple[float, ...] = field(compare=False)
    geometry: ModelGeometry | None = None
    macs: tuple[int, ...] = ()
    activations: ActivationTable | None = None

    def table(self, predictor: str | None = None) -> DamageTable:
        """Return the table of `predictor` (the first one when None)."""
        by_name = {table.predictor: table for table in self.tables}
        if predictor is None:
            return self.tables[0]
        if predictor not in by_name:
            raise PlanError(
                f"this profile holds no scores of '{predictor}'{suggest(predictor, by_name)}; profile with it first"
            )
        return by_name[predictor]

    @property
    def cost(self) -> float:
        """Forward-equivalents spent on all tables."""
        tables = [*self.tables, *([] if self.activations is None else [self.activations.damages])]
        return sum(table.cost for table in tables)

    def save(self, folder: Path | str) -> Path:
        """Write ``profile.json`` into `folder`, atomically; return its path."""
        target = Path(folder) / "profile.json"
        storage.write_document(
            target, "profile", PROFILE_VERSION, storage.finite(_ADAPTER.dump_python(self, mode="json"))
        )
        return target

    @staticmethod
    def load(path: Path | str) -> Profile:
        """Read a profile from its folder or file; `FileFormatError` when it is not whole."""
        path = Path(path)
        path = path / "profile.json" if path.is_dir() else path
        _, content = storage.read_document(path, "profile", PROFILE_VERSION)
        return parse_profile(content, path)


_ADAPTER = TypeAdapter(Profile)
_GEOMETRY = TypeAdapter(ModelGeometry)


def geometry_document(geometry: ModelGeometry) -> storage.Json:
    """Return all measures as JSON; what is infinite (a condition number may be) is written as text."""
    document: storage.Json = storage.finite(_GEOMETRY.dump_python(geometry, mode="json"))
    return document


def parse_profile(content: storage.Json, source: Path) -> Profile:
    """Check `content` against the schema of `Profile`."""
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FileFormatError(f"{source} does not hold a valid profile: {place}: {first['msg']}") from error


def profile(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    grids: Sequence[str | Grid] = DEFAULT_GRIDS,
    predictors: Sequence[str | Predictor] | None = None,
    only: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    geometry: bool = False,
    activations: Sequence[str | ActivationGrid] = (),
    activation_sites: Sequence[str] = (LAYERS,),
    cluster: Cluster | None = None,
) -> Profile:
    """Measure what each (layer, grid) choice costs `model`; the model is left as it was.

    Args:
        model: the float model.
        calibration: batches (tensor, pair or mapping); no labels are needed by the default predictors.
        grids: the choices, as `Grid` or its name.
        predictors: names of registered predictors, or predictors with settings of your own such as
            ``MarginalKL(deploy=…)``; the first is the default of `allocate`. `default_predictors` when not given.
        only: names or ``re:`` patterns of the layers to measure; the others stay in float.
        exclude: names or patterns of layers that stay in float.
        forward: ``forward(model, batch) -> logits`` when the usual ways of calling do not fit.
        seed: of every random draw.
        geometry: measure traces, norms, spectrum and curvature as well (see `geoquant.geometry.measure_geometry`);
            plans do not need it, people do.
        activations: activation grids to measure too, one activation at a time, so that plans can choose among them.
        activation_sites: where: names or ``re:`` patterns of layers, whose inputs are meant, and of operands of
            operations (``"re:.*"`` for all of both); the inputs of all layers by default.
        cluster: workers that share the predictors which measure site by site; the profile is the same bit for bit.

    Raises:
        DataError: the calibration set is empty or not finite.
        ModelError: the weights are not finite, or there is nothing to quantize.
        LayerNameError, GridError, UnknownNameError: a name is wrong.
    """
    asked = default_predictors(model, bool(activations)) if predictors is None else predictors
    chosen = [PREDICTORS[each] if isinstance(each, str) else each for each in asked]
    subject = make_subject(model, calibration, grids=grids, only=only, exclude=exclude, forward=forward, seed=seed)
    inventory = take_inventory(model)
    wanted = tuple(dict.fromkeys(ActivationGrid.parse(str(grid)) for grid in activations))
    entering = find_activations(model, inventory, activation_sites) if wanted else ()
    tables, seconds = zip(*(_timed(predictor, subject, cluster) for predictor in chosen), strict=True)
    names = tuple(str(grid) for grid in subject.grids)
    found = None
    if geometry:
        found = measure_geometry(model, subject.batches, subject.sites, forward=forward, seed=seed)
    macs = multiplications(model, inventory.sites, subject.batches[0], forward)
    inputs = measure_activations(model, entering, wanted, subject.batches, forward) if entering else None
    return Profile(inventory, names, tables, fingerprint(subject.batches), seed, seconds, found, macs, inputs)


def make_subject(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    grids: Sequence[str | Grid] = DEFAULT_GRIDS,
    only: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> Subject:
    """Check everything a measurement needs before any work is done (see `profile`)."""
    parsed = tuple(dict.fromkeys(grid if isinstance(grid, Grid) else Grid.parse(grid) for grid in grids))
    sites = find_sites(model)
    names = [site.name for site in sites]
    wanted = set(select(names, only)) if only is not None else set(names)
    wanted -= set(select(names, exclude)) if exclude else set()
    check_finite(model)
    batches = collect(calibration)
    _check_finite_output(model, batches, forward)
    return Subject(model, tuple(site for site in sites if site.name in wanted), parsed, batches, forward, seed)


def _check_finite_output(model: nn.Module, batches: tuple[Any, ...], forward: Forward | None) -> None:
    """Run one batch: a model that cannot be called should say so now, not after minutes of work."""
    with inference(model):
        logits = predict(model, batches[0], forward)
    if not bool(logits.isfinite().all()):
        raise PlanError("the float model gives NaN or Inf on the first calibration batch; mend the model or the data")


def _timed(predictor: Predictor, subject: Subject, cluster: Cluster | None) -> tuple[DamageTable, float]:
    start = time.perf_counter()
    found = predictor.measure(subject) if cluster is None else measure_sharded(predictor, subject, cluster)
    return found, time.perf_counter() - start
