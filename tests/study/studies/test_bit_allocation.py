"""CAQ as written and sound, on cases with known answers; plans that keep their size; verdicts that follow the cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from geoquant.findings import Claim
from geoquant.models import get_weight, set_weight_
from geoquant.sensitivity import LayerConstants, make_subject, profile
from geoquant.study import STUDIES
from geoquant.study.results import Result, Results
from geoquant.study.studies.bit_allocation.cells import METHODS, PIPELINE, WRITTEN, run, to_mantissa
from geoquant.study.studies.bit_allocation.forms import (
    SoundCaq,
    WrittenCaq,
    composed_error,
    disturbed,
    naive_error,
    written_constants,
    written_plans,
)
from geoquant.study.studies.bit_allocation.reading import (
    curved_layers,
    dominates,
    memory,
    robust,
    savings,
    solver,
    tight,
    within,
)

NET = {"net": "digits_cnn", "data": "digits", "images": 400, "epochs": 2, "seed": 0, "calibration": 64, "test": 200}


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).eval()


def test_written_constants_of_a_known_matrix() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    (found,) = written_constants(make_subject(chain(layer), [torch.tensor([[3.0, 4.0]])], grids=["fp32"]))
    assert found.lipschitz == pytest.approx(3)
    assert found.kappa == pytest.approx((0.5 * (18**2 + 2**2)) ** 0.5)  # of H = diag(18, 2), not its largest, 18
    assert found.diameter == pytest.approx(5)


def test_written_kappa_of_a_convolution_is_that_of_its_hessian() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    (found,) = written_constants(make_subject(chain(layer), [torch.randn(2, 1, 4, 4)], grids=["fp32"]), probes=400)
    inputs = torch.randn(16, requires_grad=True)
    hessian = torch.autograd.functional.hessian(lambda x: layer(x.view(1, 1, 4, 4)).square().sum(), inputs).double()
    signs = torch.randint(0, 2, (4000, 16)).double() * 2 - 1
    assert found.kappa == pytest.approx(float(((signs @ hessian).norm(dim=1) / 4).mean()), rel=0.02)


def test_sound_damage_bounds_what_a_layer_alone_does_to_a_chain() -> None:
    model = chain(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU())
    model.append(nn.Linear(5, 3))
    x = torch.randn(32, 1, 6, 6)
    subject = make_subject(model, [x], grids=["int2", "int4", "fp32"])
    damage = np.array(SoundCaq().measure(subject).damage)
    with torch.no_grad():
        before = model(x)
        for row, site in enumerate(subject.sites):
            weight = get_weight(model, site).clone()
            moved = [weight + subject.displacement(row, column) for column in range(2)]
            for column in range(2):
                set_weight_(model, site, moved[column])
                seen = float((model(x) - before).norm(dim=1).max())
                assert 0 < seen <= damage[row, column]
            set_weight_(model, site, weight)
    assert (damage[:, 2] == 0).all()


def test_plans_as_written_widen_as_the_tolerance_shrinks_and_keep_least_widths() -> None:
    model = chain(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    x = [torch.randn(16, 16)]
    constants = written_constants(make_subject(model, x, grids=["fp32"]))
    table = profile(model, x, grids=["int4", "int8", "int16", "fp32"], predictors=[WrittenCaq(constants)])
    plans = written_plans(table, constants)
    sizes = [plan.average_bits for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert len(plans) > 4
    assert {grid.bits for plan in plans for grid in plan.grids} == {4, 8, 16, 32}


def test_composition_in_order_of_execution_and_without_positions() -> None:
    first, last = LayerConstants("a", 2.0, 0.0, 1.0, 0), LayerConstants("b", 4.0, 0.0, 1.0, 1)
    assert composed_error([last, first], {"a": 1, "b": 1}) == 1 * 4 + 2
    assert naive_error([last, first], {"a": 1, "b": 1}) == (1 + 2) * 8


def test_disturbed_changes_kappa_alone() -> None:
    layers = [LayerConstants(f"{place}", 2.0, 8.0, 1.0, place) for place in range(50)]
    wrong = disturbed(layers, 2.0, seed=1)
    ratios = [each.kappa / 8 for each in wrong]
    assert 0.5 <= min(ratios) < 0.6
    assert 1.8 < max(ratios) <= 2.0
    assert all(each.lipschitz == 2 and each.diameter == 1 for each in wrong)


def test_mantissas_err_by_half_a_unit_at_most() -> None:
    x = torch.randn(1000, dtype=torch.float64)
    for bits in (2, 5, 11):
        error = ((to_mantissa(x, bits) - x) / x).abs().max()
        assert 0.4 * 2.0**-bits < float(error) * 2 <= 2.0**-bits


@pytest.mark.parametrize("method", METHODS)
def test_curves_keep_the_size_that_they_are_judged_at(method: str) -> None:
    found = run({**NET, "part": "sweep", "method": method, "widths": [2, 3, 8], "draws": 8})
    assert found["rows"] or method == WRITTEN
    for row in found["rows"]:
        assert row["average_bits"] <= row["budget"] * (1 + 1e-9)
        assert 0 <= row["accuracy"] <= 100
    if method != WRITTEN:
        assert [row["width"] for row in found["rows"]] == [2, 3, 8]
        assert abs(found["rows"][-1]["accuracy"] - found["accuracy_float"]) <= 2
    assert set(found["bits"]) == {f"{row['width']:g}" for row in found["rows"]}


def test_pipeline_and_nearest_rounding_differ() -> None:
    one, other = (
        run({**NET, "part": "sweep", "method": method, "widths": [2]})["rows"][0] for method in ("uniform", PIPELINE[0])
    )
    assert one["bytes"] == other["bytes"]
    assert one["kl"] > other["kl"]


def test_facts_say_what_is_proven_and_what_is_not() -> None:
    found = run({**NET, "part": "facts", "widths": [4], "inputs": 4})
    (row,) = found["rows"]
    assert row["bound"] >= row["observed"] > 0  # proven
    assert row["naive"] >= row["written"]
    assert len(found["constants"]) == 5
    assert all(each["largest"] <= 1 for each in found["first_layer"])  # the "at least" is an upper bound


def test_solver_times_are_measured() -> None:
    found = run({"part": "solver", "layers": 20, "seed": 0})
    assert 0 <= found["gap_exact"] <= 1e-3
    assert found["gap_exact"] <= found["gap_gradient"]
    assert found["cost_exact"] <= found["cost_gradient"]


def curve(method: str, rows: list[tuple[int, float]], seed: int = 0, **more: Any) -> Result:
    points = tuple({"width": w, "average_bits": w, "bytes": 100 * w, "accuracy": accuracy} for w, accuracy in rows)
    configuration = {"part": "sweep", "net": "n", "data": "d", "seed": seed, "method": method, **more}
    bits = {"4": [6, 2], "8": [8, 8]}
    return Result(configuration, {"accuracy_float": 90.0, "layers": ["a", "b"], "bits": bits}, points)


def results(*cells: Result) -> Results:
    return Results(cells, "again", "quick")


UNIFORM = curve("uniform", [(3, 80.0), (4, 85.0), (5, 90.0), (8, 90.0)])


def test_savings_at_equal_accuracy() -> None:
    better = results(UNIFORM, curve("geoquant", [(3, 80.0), (4, 89.6), (8, 90.0)]))
    assert savings(better, "geoquant", "n") == [pytest.approx(20)]
    assert savings(better, "geoquant", "n", levels=(4, 8)) == [pytest.approx(50)]


@pytest.mark.parametrize(
    ("curves", "verdict"),
    [
        ([curve("geoquant", [(4, 90.0)])], "holds"),  # 4 instead of 5 bits: 20 %
        ([curve("geoquant", [(5, 90.0)])], "fails"),
        ([curve("geoquant", [(5, 80.0)])], "not measured"),  # never as accurate
        ([], "not measured"),
    ],
)
def test_memory_claim_follows_the_curves(curves: list[Result], verdict: str) -> None:
    claim = memory("geoquant")(results(UNIFORM, *curves))
    assert (claim.verdict, claim.command) == (verdict, "again")


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ([80.0, 85.0], "fails"),  # equal everywhere dominates nothing
        ([80.0, 86.0], "holds"),
        ([81.0, 84.0], "fails"),
    ],
)
def test_a_curve_dominates_that_is_nowhere_behind_and_somewhere_ahead(accuracies: list[float], verdict: str) -> None:
    claim = dominates(results(UNIFORM, curve(WRITTEN, list(zip((3, 4), accuracies, strict=True)))))
    assert claim.verdict == verdict
    assert "of 2 sizes" in claim.measured


def facts(**more: Any) -> Result:
    constants = [{"layer": "a", "kappa": 5.0}, {"layer": "b", "kappa": 1.0}]
    times = {"seconds_curvature": 1.0, "seconds_caq": 2.0, "seconds_training": 30.0}
    first = [{"bits": 4, "least": 0.1, "largest": 0.5}]
    configuration = {"part": "facts", "net": more.pop("net", "n"), "data": "d", "seed": 0}
    rows = ({"width": 4, "observed": 1.0, "written": more.pop("written", 5.0), "naive": 50.0, "bound": 2.0},)
    return Result(configuration, {"constants": constants, "first_layer": first, **times, **more}, rows)


def verdicts(claims: list[Claim]) -> list[str]:
    return [claim.verdict for claim in claims]


def test_other_claims_follow_the_cells_both_ways() -> None:
    curved = results(facts(), curve("geoquant", [(4, 90.0)]))  # 6 bits for the layer of large κ, 2 for the other
    assert verdicts([curved_layers(curved), tight(curved)]) == ["holds", "holds"]
    assert tight(results(facts(written=20.0))).verdict == "fails"
    exact, wrong = curve(WRITTEN, [(4, 90.0)]), curve(WRITTEN, [(4, 89.9)], wrong_by=2.0, draw=0)
    assert robust(results(exact, wrong)).verdict == "holds"
    assert robust(results(exact, curve(WRITTEN, [(4, 80.0)], wrong_by=2.0, draw=0))).verdict == "fails"
    slow = facts(net="mlp4_fashion_mnist", seconds_curvature=4.0)
    assert verdicts([within("seconds_curvature", s, "")(results(slow)) for s in (3, 5)]) == ["fails", "holds"]
    timed = {"seconds_gradient": 0.5, "gap_gradient": 0.1, "seconds_exact": 0.1, "gap_exact": 0.0}
    made = Result({"part": "solver", "layers": 50}, timed)
    assert solver(results(made)).verdict == "holds"


def test_quick_runs_on_digits_without_image_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEOQUANT_DATA_DIR", raising=False)
    study = STUDIES["bit-allocation"]
    assert {cell.configuration.get("data", "digits") for cell in study.grid("quick")} == {"digits"}
    missing = [study.unavailable(cell.configuration) for cell in study.grid("laptop")]
    assert any(reason and "svhn" in reason for reason in missing)
