"""Diagnoses of small nets whose fate is known."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from geoquant.basin import Diagnosis, SliceSettings, WalkSettings, WidthSettings, diagnose
from geoquant.basin.directions import Cell
from geoquant.errors import DataError, FileFormatError, GeoquantError, ModelError, PlanError
from geoquant.evaluation import Mean, evaluate
from geoquant.plan import uniform_plan
from geoquant.quantize import quantize
from nets import blob_batches as batches

QUICK = WidthSettings(randoms=1, eigenvectors=0, layer_samples=64)
WALKS = WalkSettings(neighbour_steps=20, training_steps=20, exhaustive=True)


def quick(model: nn.Module, grid: str, **settings: object) -> Diagnosis:
    chosen = {"widths": QUICK, "walks": WALKS, **settings}
    return diagnose(model, uniform_plan(model, grid), batches(), **chosen)  # type: ignore[arg-type]


def test_fine_grids_survive_and_two_levels_do_not(net: nn.Module) -> None:
    fine, coarse = quick(net, "int8"), quick(net, "binary:tensor", tolerance=0.01)
    assert fine.verdict == "ptq"
    assert fine.layers == ()
    assert fine.width.displacement.radius.value > 1
    assert fine.constructive.crossed == ()
    assert coarse.verdict in ("qat", "infeasible")
    assert set(coarse.layers) <= {"0", "3", "5"}
    assert coarse.layers
    assert coarse.evidence.leaving == 1.0
    assert coarse.width.displacement.radius.value < 1
    assert "nearest" in coarse.constructive.crossed


def test_rises_are_those_of_the_deployed_models_on_the_judging_half(net: nn.Module) -> None:
    data = batches()
    plan = uniform_plan(net, "int2")
    found = diagnose(net, plan, data, widths=QUICK, walks=WalkSettings(0, 0, exhaustive=True))
    fit, judge = data[::2], data[1::2]
    before = evaluate(net, judge).cross_entropy.value
    for name, recipe in {
        "nearest": {"rounding": "nearest", "norms": "none"},
        "gptq": {"rounding": "gptq", "norms": "none"},
        "descent, norms corrected": {"rounding": "descent", "norms": "relative"},
    }.items():
        deployed = quantize(net, plan, fit, **recipe)
        wanted = evaluate(deployed, judge).cross_entropy.value - before
        rise = next(each.rise.value for each in found.candidates if each.name == name)
        assert rise == pytest.approx(wanted, abs=1e-5)
    assert len(found.candidates) == 3
    assert found.evidence.trained is None


def test_held_out_batches_judge_what_all_of_the_calibration_made(net: nn.Module) -> None:
    fit, held = batches(4), batches(3, seed=6)
    plan = uniform_plan(net, "int2")
    found = diagnose(net, plan, fit, held_out=held, widths=QUICK, walks=WalkSettings(0, 0, exhaustive=True))
    deployed = quantize(net, plan, fit)
    wanted = evaluate(deployed, held).cross_entropy.value - evaluate(net, held).cross_entropy.value
    rise = found.evidence.rounded
    assert rise is not None
    assert (rise.value, rise.samples) == (pytest.approx(wanted, abs=1e-5), 192)
    assert found.data != diagnose(net, plan, fit, widths=QUICK, walks=WalkSettings(0, 0)).data


def test_the_neighbour_walk_stays_in_the_cell_and_helps(net: nn.Module) -> None:
    found = quick(net, "int2:tensor", walks=WalkSettings(60, 60, exhaustive=True))
    rise = {each.name: each.rise.value for each in found.candidates}
    steps = {each.name: each.steps for each in found.candidates}
    assert rise["neighbours"] < 0.7 * rise["nearest"]
    assert steps["nearest"] < steps["neighbours"]
    assert rise["short training"] <= 1.05 * rise["descent, norms corrected"]


def test_a_low_loss_codeword_that_nearest_rounding_misses_is_found() -> None:
    """Eight copies of one input with weight 0.4 each: nearest drops them all, three ones are as good as float."""
    model = nn.Sequential(nn.Linear(9, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0] + [0.4] * 8, [3.0] + [-0.4] * 8]))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(256, 1, generator=generator)
    inputs = torch.cat([torch.zeros(256, 1), values.expand(-1, 8)], 1)
    data = [(part, (part[:, 1] < 0).long()) for part in inputs.split(32)]
    plan = uniform_plan(model, "int3:narrow:maxabs:tensor:fp32")
    found = diagnose(model, plan, data, widths=QUICK, walks=WalkSettings(60, 0, exhaustive=True))
    rise = {each.name: each.rise.value for each in found.candidates}
    assert rise["nearest"] > 0.3
    assert rise["neighbours"] < 0.02
    assert "nearest" in found.constructive.crossed
    assert found.constructive.found


def test_where_both_codewords_are_far_none_is_found() -> None:
    """A single weight of 1.2 between the levels 0 and 3: the negative twin."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 1.2], [3.0, -1.2]]))
    values = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    data = list(torch.cat([torch.zeros(256, 1), values], 1).split(32))
    plan = uniform_plan(model, "ternary:maxabs:tensor:fp32")
    found = diagnose(model, plan, data, widths=QUICK, walks=WalkSettings(60, 0, exhaustive=True))
    assert found.constructive.crossed == ("nearest", "gptq")
    assert found.constructive.found == ""


def test_the_model_is_untouched_and_the_answer_repeats(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = quick(net, "int3", seed=4), quick(net, "int3", seed=4)
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.training


def test_json_round_trip_and_damage(net: nn.Module, tmp_path: Path) -> None:
    settings = WidthSettings(randoms=1, eigenvectors=1, lanczos_steps=4, layers=False)
    found = quick(net, "int2", widths=settings, slices=SliceSettings(samples=64, line=5, plane=3))
    path = found.save(tmp_path)
    assert Diagnosis.load(tmp_path) == found
    text = json.loads(path.read_text())
    text["content"]["verdict"] = "ptq"
    path.write_text(json.dumps(text))
    with pytest.raises(FileFormatError, match="checksum"):
        Diagnosis.load(path)


def test_what_is_infinite_survives_the_file(net: nn.Module, tmp_path: Path) -> None:
    found = quick(net, "int8")
    endless = replace(found, evidence=replace(found.evidence, nearest=Mean(math.inf, 0.0, 5)))
    assert Diagnosis.load(endless.save(tmp_path)) == endless


def test_it_reads_well(net: nn.Module) -> None:
    text = str(quick(net, "int2:tensor", tolerance=0.01))
    for part in (
        "average bits",
        "allowed is a rise of cross-entropy by 0.01 nats",
        "why",
        "codeword",
        "grid steps",
        "what to do",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines()) < 200


def test_without_labels_the_divergence_judges(net: nn.Module) -> None:
    data = [inputs for inputs, _ in batches(4)]
    found = diagnose(net, uniform_plan(net, "int8"), data, widths=QUICK, walks=WALKS)
    assert found.width.loss == "kl"
    assert found.verdict == "ptq"


def test_slices_pass_through_their_points(net: nn.Module) -> None:
    plan, data = uniform_plan(net, "int2"), batches()
    trained = quantize(net, plan, data)
    slices = SliceSettings(samples=256, line=6, plane=5)
    found = diagnose(net, plan, data, widths=QUICK, walks=WALKS, slices=slices, trained=trained)
    line, plane = found.lines[0], found.planes[0]
    assert line.places == (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    assert line.rise[1] == pytest.approx(0.0, abs=1e-6)
    nearest = next(each.rise.value for each in found.candidates if each.name == "nearest")
    assert line.rise[3] == pytest.approx(nearest, rel=1e-3)  # 256 samples are all of the judging half
    cell = Cell.of(net, plan)
    assert line.step * cell.steps(cell.displacement()) == pytest.approx(1.0)
    marks = {marker.name: marker for marker in plane.markers}
    assert set(marks) == {"float", "rounded", "trained"}
    assert (marks["float"].x, marks["float"].y) == (0.0, 0.0)
    assert marks["rounded"].x == pytest.approx(cell.steps(cell.displacement()), rel=1e-5)
    assert marks["trained"].y != 0
    assert len(plane.rise) == len(plane.ys) == 5
    assert all(math.isfinite(value) for row in plane.rise for value in row)


def test_a_single_batch_is_cut_in_two(net: nn.Module) -> None:
    found = diagnose(net, uniform_plan(net, "int8"), batches(1, 40), widths=QUICK, walks=WALKS)
    assert found.evidence.nearest.samples == 20
    with pytest.raises(DataError, match="two samples"):
        diagnose(net, uniform_plan(net, "int8"), batches(1, 1), widths=QUICK)


def test_errors_come_before_any_work(net: nn.Module) -> None:
    plan, data = uniform_plan(net, "int4"), batches(2)
    with pytest.raises(GeoquantError, match="tolerance=0"):
        diagnose(net, plan, data, tolerance=0.0)
    with pytest.raises(PlanError, match="quantized already"):
        diagnose(quantize(net, plan), plan, data)
    with pytest.raises(PlanError, match="another model"):
        diagnose(nn.Sequential(nn.Linear(12, 10)), plan, data)
    with pytest.raises(DataError, match="no batches"):
        diagnose(net, plan, [])
    broken = copy.deepcopy(net)
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(ModelError, match="NaN"):
        diagnose(broken, uniform_plan(broken, "int4"), data)
