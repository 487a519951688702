"""Will this plan survive rounding, and if not, does better rounding, training, or nothing help? Measured beforehand.

Candidates are made on some samples and judged on others. The model is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geoquant.basin.codewords import (
    NEAREST,
    NEIGHBOURS,
    PIPELINE,
    SECOND_ORDER,
    TRAINED,
    Candidate,
    CodewordSearch,
    WalkSettings,
)
from geoquant.basin.diagnosis import Diagnosis, constructive_failure, layers_to_train, remedy_for
from geoquant.basin.directions import Cell
from geoquant.basin.rise import LossRise, Point, SampleLoss
from geoquant.basin.slices import Line, Plane, loss_line, loss_plane
from geoquant.basin.verdict import THRESHOLDS, Evidence, Thresholds, decide
from geoquant.basin.width import BasinWidth, WidthSettings, basin_width
from geoquant.data import collect, fingerprint
from geoquant.errors import DataError, GeoquantError, PlanError
from geoquant.geometry.pieces import split
from geoquant.models import Forward, batch_size, check_finite, get_weight, take_inventory
from geoquant.plan import Plan
from geoquant.quantize import is_quantized


@dataclass(frozen=True)
class SliceSettings:
    """How finely the loss is sliced.

    Attributes:
        samples: looked at at every point.
        line: points along the displacement.
        plane: points along each axis of the plane through float, rounded and a third point; 0 leaves it out, and so
            does nearest rounding that is clearly good enough.
    """

    samples: int = 128
    line: int = 21
    plane: int = 0


def diagnose(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any],
    *,
    held_out: Iterable[Any] | None = None,
    tolerance: float = 0.05,
    loss: str | SampleLoss = "auto",
    checkpoints: Sequence[Mapping[str, Tensor]] = (),
    trained: nn.Module | None = None,
    samples: int = 256,
    widths: WidthSettings | None = None,
    walks: WalkSettings | None = None,
    slices: SliceSettings | None = None,
    thresholds: Thresholds = THRESHOLDS,
    forward: Forward | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Predict what rounding by `plan` does to `model`, and what would help.

    Args:
        model: the float model; it stays as it is.
        plan: the candidate.
        calibration: a few hundred samples or more; with labels the loss is cross-entropy, without the divergence from
            the float model. Half of the batches make candidates, the other half judges them.
        held_out: batches that judge instead, so that all of `calibration` makes candidates, as when the plan is carried
            out. Best samples that the model was not trained on: the loss of those that it has fitted rises otherwise.
        tolerance: rise of the loss that is allowed, nats per prediction.
        loss: see `LossRise`.
        checkpoints: state dicts of the training that led to the model, to measure the basin along it.
        trained: a model that was recovered by training, for the slices.
        samples: at most so many samples for the basin's width; fewer where each holds many predictions (see
            `WidthSettings.predictions`).
        widths: what to spend on the width.
        walks: what to spend on the search for codewords.
        slices: how to slice the loss; no slices when None.
        thresholds: where verdicts change.
        forward: how to call the model.
        seed: of every random draw.

    Raises:
        PlanError: the plan belongs to another model, moves nothing, or the model is quantized already.
        DataError: there are fewer than two samples, or targets are missing or not finite.
        ModelError: the model cannot be called, or holds NaN.
        GeoquantError: the tolerance makes no sense.
    """
    if not 0 < tolerance < float("inf"):
        raise GeoquantError(f"tolerance={tolerance} is no rise of a loss; give nats per prediction, such as 0.05")
    if is_quantized(model):
        raise PlanError("this model is quantized already; diagnose the float model")
    plan.inventory.check_same_layout(take_inventory(model))
    check_finite(model)
    data = collect(calibration)
    fit, held = _halves(data) if held_out is None else (data, collect(held_out))
    judge, spend = LossRise(model, held, loss, forward), widths or WidthSettings()
    few = collect(held, judge.enough(samples, spend.predictions))
    width = basin_width(
        model,
        plan,
        few,
        tolerance=tolerance,
        loss=loss,
        checkpoints=checkpoints,
        settings=spend,
        forward=forward,
        seed=seed,
    )
    search = CodewordSearch(model, plan, fit, judge, tolerance, walks or WalkSettings(), forward, seed)
    found = search.run()
    candidates = tuple(each for each, _ in found)
    lines, planes = _slices(search, found, trained, slices) if slices else ((), ())
    evidence = gather(candidates, width, tolerance)
    verdict, reasons = decide(evidence, thresholds)
    layers = layers_to_train(width.layers, tolerance) if verdict in ("qat", "infeasible") else ()
    remedy = remedy_for(verdict, layers, constructive_failure(candidates, tolerance))
    return Diagnosis(
        verdict,
        reasons,
        remedy,
        layers,
        evidence,
        thresholds,
        width,
        candidates,
        plan_words(plan),
        fingerprint(data if held_out is None else (*data, *held)),
        seed,
        lines,
        planes,
    )


def gather(candidates: Sequence[Candidate], width: BasinWidth, tolerance: float) -> Evidence:
    """Pick from the measurements what the verdict looks at."""
    rises = {each.name: each.rise for each in candidates}
    share = len(width.leaving) / len(width.layers) if width.layers else float(width.displacement.leaves)
    return Evidence(
        tolerance,
        rises[NEAREST],
        rises.get(PIPELINE),
        rises.get(TRAINED),
        share,
        width.displacement.in_steps.value,
        width.random_steps,
    )


def plan_words(plan: Plan) -> str:
    """Name a plan by its grid, or by how many grids it mixes, and its size.

    >>> from geoquant.plan import uniform_plan
    >>> plan_words(uniform_plan(nn.Sequential(nn.Linear(8, 4, bias=False)), "int4:tensor"))
    'int4:tensor, 4.50 average bits'
    """
    grids = sorted(set(plan.names))
    text = grids[0] if len(grids) == 1 else f"{len(grids)} grids from {', '.join(grids[:4])}"
    inputs = f", activations on {len(plan.activations)} grids" if plan.activations else ""
    return f"{text}, {plan.average_bits:.2f} average bits{inputs}"


def _halves(data: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return every other batch, and the rest; a single batch is cut in two."""
    if len(data) == 1:
        count = batch_size(data[0])
        if count < 2:
            raise DataError("a diagnosis needs at least two samples: some make codewords, others judge them")
        data = tuple(split(data[0], -(-count // 2)))
    return tuple(data[::2]), tuple(data[1::2])


def _slices(
    search: CodewordSearch,
    found: Sequence[tuple[Candidate, Point]],
    trained: nn.Module | None,
    slices: SliceSettings,
) -> tuple[tuple[Line, ...], tuple[Plane, ...]]:
    """Slice along the displacement, and through float, rounded and a third point."""
    cell, judge, tolerance = Cell.of(search.model, search.plan), search.judge, search.tolerance
    few = collect(judge.batches, min(slices.samples, judge.samples))
    rise = LossRise(search.model, few, judge.own or judge.name, search.forward)
    lines = (loss_line(cell, cell.displacement(), rise, tolerance, points=slices.line),)
    points = {each.name: point for each, point in found}
    other = {name: points[name] for name in (NEIGHBOURS, SECOND_ORDER) if name in points}
    if trained is not None:
        other = {"trained": {site.parameter: get_weight(trained, site) for site in cell.sites}}
    if not slices.plane or not other:
        return lines, ()
    third = next(iter(other))
    return lines, (
        loss_plane(cell, {"rounded": cell.rounded, third: other[third]}, rise, tolerance, points=slices.plane),
    )
