"""The quick preset on the embedded digits, end to end: CI runs this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from geoquant.data import digits
from geoquant.evaluation import divergence
from geoquant.models.zoo import digits_cnn
from geoquant.study import STUDIES, Result, Results, gather, run_study
from geoquant.study.studies.digits_depth import LAYERS, WIDTHS, early_fewer, ends_more, least_width

STUDY = STUDIES["digits-depth"]


def made_up(bits: list[float]) -> Results:
    cells = zip(LAYERS, bits, strict=True)
    return Results(tuple(Result({"layer": layer, "seed": 0}, {"bits_needed": need}) for layer, need in cells))


def test_the_quick_preset_runs_and_is_read(tmp_path: Path) -> None:
    report = run_study(STUDY, "quick", tmp_path)
    assert (report.ran, report.failed) == (2 * len(LAYERS), ())
    found = gather(STUDY, "quick", tmp_path)
    assert all(row["float_accuracy"] > 95 for row in found.cells)
    for layer in LAYERS:
        damages = [row["kl"] for row in found.rows if row["layer"] == layer and row["seed"] == 0]
        assert len(damages) == len(WIDTHS)
        assert damages[0] > damages[3] > damages[6] >= 0
    assert {claim.verdict for claim in found.claims} <= {"holds", "fails", "partly"}
    bars, lines = found.figures
    assert bars.series[0].x == LAYERS
    assert [line.name for line in lines.series] == list(LAYERS)
    assert len(found.tables[0].rows) == len(LAYERS)


def test_the_damage_is_that_of_one_rounded_layer() -> None:
    """The last layer at two bits, rounded by hand: per channel, the step that loses least in square."""
    from geoquant.grids import Grid
    from geoquant.study.studies.digits_depth import _trained

    cell = next(cell for cell in STUDY.grid("quick") if cell.configuration["layer"] == "head")
    metrics = STUDY.run(cell.configuration)
    float_net, rounded = _trained(0), digits_cnn()
    rounded.load_state_dict(float_net.state_dict())
    rounded.eval().head.weight.data = Grid.parse("int2").quantize(float_net.head.weight.detach()).dequantize()
    expected = divergence(float_net, rounded, digits("test").batches(360)).value
    assert metrics["rows"][0]["kl"] == pytest.approx(expected, rel=1e-5)
    assert metrics["bits_needed"] == least_width([row["kl"] for row in metrics["rows"]])


@pytest.mark.parametrize(
    ("bits", "early", "ends"),
    [
        ([3, 3, 4, 6, 6], "holds", "fails"),
        ([6, 6, 4, 3, 3], "fails", "fails"),
        ([8, 3, 3, 3, 8], "partly", "holds"),
        ([6, 4, 4, 4, 6], "partly", "partly"),
    ],
)
def test_verdicts_follow_from_the_bits(bits: list[float], early: str, ends: str) -> None:
    results = made_up(bits)
    assert (early_fewer(results).verdict, ends_more(results).verdict) == (early, ends)


def test_a_layer_without_result_leaves_the_claims_open() -> None:
    results = made_up([3, 3, 4, 6, 6]).keep(lambda cell: cell["layer"] != "head")
    assert {early_fewer(results).verdict, ends_more(results).verdict} == {"not measured"}
