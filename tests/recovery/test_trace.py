"""What a trace says, on landscapes where it is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.recovery.toys import BATCH, FixedScale, Point
from torch import Tensor

import geoquant as gq
from geoquant.errors import FileFormatError
from geoquant.recovery import Objective, Trace, Tracer, prepare_, recover_


def tracer_at(start: float, wanted: float, river: dict[str, Tensor] | None = None) -> Tracer:
    """Return a tracer on ½(n − wanted)² with the float weight at `start`, on the integers."""
    model = Point(start)
    plan = gq.uniform_plan(model, "int4:fp32")
    reference = copy.deepcopy(model)
    gq.quantize_(model, plan, rounding=FixedScale(1.0))
    latents = prepare_(model, reference=reference, method="ste")

    def parabola(point: Tensor, _: object) -> Tensor:
        return 0.5 * (point[0, 1] - wanted) ** 2

    return Tracer(latents, Objective(parabola), BATCH, river)


def test_a_point_has_the_known_figures() -> None:
    point = tracer_at(0.75, wanted=0.25).look(3, training_loss=7.0)
    assert (point.step, point.training_loss) == (3, 7.0)
    assert point.latent_loss == pytest.approx(0.5 * 0.5**2)  # at n = 0.75
    assert point.quantized_loss == pytest.approx(0.5 * 0.75**2)  # at Q(n) = 1
    assert point.inward == pytest.approx(0.75)  # the gradient at 1 is 0.75, and the float weight lies below 1
    assert point.inward_share == pytest.approx(1.0)
    assert point.latent_distance == pytest.approx(0.0)
    assert point.quantized_distance == pytest.approx(0.25)


def test_a_gradient_away_from_the_float_weights_is_negative() -> None:
    assert tracer_at(0.75, wanted=3.0).look(0).inward == pytest.approx(-2.0)


def test_along_the_river_there_is_no_inwards() -> None:
    point = tracer_at(0.75, wanted=0.25, river={"across.weight": torch.ones(1, 1)}).look(0)
    assert point.inward == pytest.approx(0.0, abs=1e-9)


def test_looking_changes_nothing(net, batches) -> None:
    plan = gq.uniform_plan(net, "int2")
    models = []
    for every in (0, 1):
        model = copy.deepcopy(net)
        result = recover_(model, plan, batches, steps=5, trace_every=every)
        assert len(result.trace.points) == (6 if every else 0)
        models.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(models[0].values(), models[1].values(), strict=True))


def test_the_quantized_loss_falls_towards_the_float_one(net, batches) -> None:
    plan = gq.uniform_plan(net, "int2")
    model = gq.quantize_(copy.deepcopy(net), plan, effort="fast", norms="none", rounding="nearest")
    trace = recover_(model, plan, batches, teacher=net, epochs=3, trace_every=8).trace
    first, last = trace.points[0], trace.points[-1]
    assert last.quantized_loss < first.quantized_loss
    assert first.latent_loss < first.quantized_loss
    assert first.latent_distance <= first.quantized_distance
    assert all(math.isfinite(each.inward) for each in trace.points)


def test_a_trace_is_saved_and_read_back(net, batches, tmp_path) -> None:
    trace = recover_(net, gq.uniform_plan(net, "int2"), batches, steps=2, trace_every=1).trace
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    (tmp_path / "trace.json").write_text("{}")
    with pytest.raises(FileFormatError):
        Trace.load(tmp_path / "trace.json")


def test_scalars_are_written_for_tensorboard(net, batches, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trace = recover_(net, gq.uniform_plan(net, "int2"), batches, steps=2, trace_every=1).trace
    trace.write_scalars(tmp_path)
    read = EventAccumulator(str(tmp_path)).Reload()
    scalars = read.Scalars("recovery/quantized_loss")
    assert [each.step for each in scalars] == [0, 1, 2]
    assert [each.value for each in scalars] == pytest.approx([point.quantized_loss for point in trace.points])
