"""What the comparison with other tools counts, keeps and shows; no peer needs to be installed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn

from geoquant.models import take_inventory
from geoquant.plan import uniform_plan

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def bench() -> SimpleNamespace:
    """The modules of benchmarks/peers, which are scripts and in no package."""
    names = ("driving", "comparison", "environments", "run")
    sys.path.insert(0, str(PEERS))
    try:
        found: dict[str, ModuleType] = {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(PEERS))
    return SimpleNamespace(**found)


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 7))


def shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {site.name: site.matrix_shape for site in take_inventory(model).sites}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_a_uniform_width_counts_what_the_uniform_plan_counts(bench: SimpleNamespace, net: nn.Module, bits: int) -> None:
    layers = dict.fromkeys(shapes(net), bench.driving.LayerFormat(bits))
    expected = uniform_plan(net, f"int{bits}:maxabs").average_bits
    assert bench.comparison.delivered_bits(take_inventory(net), layers) == pytest.approx(expected, abs=1e-12)
    assert bench.driving.average_bits(shapes(net), layers) == pytest.approx(expected, abs=1e-12)


def test_scales_and_offsets_and_layers_left_in_float_are_counted(bench: SimpleNamespace, net: nn.Module) -> None:
    layers = {"0": bench.driving.LayerFormat(3, group=9, offsets=1)}
    convolution = 8 * -(-135 * 3 // 8) + (16 + 16) * 5 * 3  # 135 codes in whole bytes, a scale and a shift per group
    expected = (convolution + 32 * 35) / 170
    assert bench.comparison.delivered_bits(take_inventory(net), layers) == pytest.approx(expected, abs=1e-12)


def test_driver_and_plan_count_alike_for_every_mixture(bench: SimpleNamespace, net: nn.Module) -> None:
    made = bench.driving.LayerFormat
    for first in (made(2), made(5, offsets=1), made(16), made(32), made(4, group=32)):
        for second in (made(8), made(3), made(2, group=32, offsets=1)):
            layers = {"0": first, "3": second}
            counted = bench.driving.average_bits(shapes(net), layers)
            assert bench.comparison.delivered_bits(take_inventory(net), layers) == pytest.approx(counted, abs=1e-12)


def test_an_answer_with_a_strange_layer_is_refused(bench: SimpleNamespace, net: nn.Module) -> None:
    with pytest.raises(ValueError, match="layer9"):
        bench.comparison.delivered_bits(take_inventory(net), {"layer9": bench.driving.LayerFormat(4)})


def test_the_constraint_found_is_the_largest_that_keeps_the_budget(bench: SimpleNamespace) -> None:
    def stairs(constraint: float) -> float:
        return int(10 * constraint) / 10 + 0.05

    found = bench.driving.closest_within(3.0, stairs, 2.0, 4.0)
    assert stairs(found) == pytest.approx(2.95)
    with pytest.raises(ValueError, match="no constraint"):
        bench.driving.closest_within(1.0, stairs, 2.0, 4.0)


def test_finished_cells_are_not_measured_again_and_failures_are(bench: SimpleNamespace, tmp_path: Path) -> None:
    made = bench.comparison
    cell = made.Cell(made.Contestant("a b, c", "env", "drive.py", {"x": 1}), 3.0, 0, "data")
    calls = []

    def fails() -> dict[str, object]:
        calls.append("fails")
        return {"reason": "no"}

    def works() -> dict[str, object]:
        calls.append("works")
        return {"accuracy": 90.0}

    assert made.finished(tmp_path, cell, fails) == ({"reason": "no"}, True)
    assert made.finished(tmp_path, cell, works) == ({"accuracy": 90.0}, True)
    assert made.finished(tmp_path, cell, fails) == ({"accuracy": 90.0}, False)
    assert calls == ["fails", "works"]


def test_other_settings_budgets_seeds_and_data_are_other_cells(bench: SimpleNamespace) -> None:
    made = bench.comparison
    one = made.Contestant("a", "env", "drive.py", {"x": 1})
    cells = [
        made.Cell(one, 3.0, 0, "data"),
        made.Cell(made.Contestant("a", "env", "drive.py", {"x": 2}), 3.0, 0, "data"),
        made.Cell(one, 2.5, 0, "data"),
        made.Cell(one, None, 0, "data"),
        made.Cell(one, 3.0, 1, "data"),
        made.Cell(one, 3.0, 0, "other"),
    ]
    assert len({cell.key for cell in cells}) == len(cells)


def test_rows_give_mean_and_spread_over_seeds_and_reasons_where_one_failed(bench: SimpleNamespace) -> None:
    made = bench.comparison
    good, bad = made.Contestant("good", None, "d.py"), made.Contestant("bad", "env", "d.py")
    figures = {"average_bits": 2.99, "kl": 0.1, "seconds": 4.0}
    results = [(made.Cell(good, 3.0, seed), {"accuracy": value, **figures}) for seed, value in enumerate((88, 90, 92))]
    results += [(made.Cell(bad, 3.0, 0), {"accuracy": 99, **figures}), (made.Cell(bad, 3.0, 1), {"reason": "why"})]
    first, second = made.rows(results)
    assert (first["accuracy"], first["spread"], first["seeds"]) == (90, 2.0, 3)
    assert second == {"contestant": "bad", "budget": 3.0, "reason": "why"}


def test_the_table_sorts_by_budget_then_accuracy_and_shows_reasons(bench: SimpleNamespace) -> None:
    def row(name: str, budget: float, accuracy: float) -> dict[str, object]:
        return {
            "contestant": name,
            "budget": budget,
            "average_bits": budget - 0.01,
            "accuracy": accuracy,
            "spread": 0.1,
            "seconds": 12.34,
        }

    text = bench.comparison.table(
        [
            row("low", 3.0, 70),
            {"contestant": "none", "budget": 3.0, "reason": "no conv"},
            row("high", 3.0, 90),
            row("wide", 4.0, 50),
        ]
    )
    names = [line.split("|")[2].strip() for line in text.splitlines()[2:]]
    assert names == ["wide", "high", "low", "none"]
    assert "| 3 | high | 2.990 | 90.00 | 0.10 | 12.3 |" in text
    assert "does not apply: no conv" in text


def test_the_net_is_built_from_its_file_without_the_package_around_it(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from geoquant.models.zoo.catalogue import ZOO\n\n@ZOO.add('a')\ndef a():\n    return 'built'\n")
    code = (
        "import sys; from pathlib import Path; from driving import build; print(build(Path(sys.argv[1]), 'a'));"
        "assert not hasattr(sys.modules['geoquant'], '__version__') and 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(file)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=PEERS).stdout == "built\n"


def test_every_peer_of_the_environments_is_pinned_and_has_a_driver(bench: SimpleNamespace) -> None:
    for peer, wanted in bench.environments.PEERS.items():
        assert list(PEERS.glob(f"drive_{peer}*.py")), peer
        assert all("==" in requirement for requirement in wanted), wanted


def test_a_failed_tool_is_told_by_its_exception_and_not_by_what_it_printed_last(bench: SimpleNamespace) -> None:
    text = (
        "Traceback (most recent call last):\n  File x\nmodule.BadError: no such width\n\nlayer 0: 0%| | 0/5 [00:07<?]\n"
    )
    assert bench.run.last_words(text) == "module.BadError: no such width"
    assert bench.run.last_words("loading\nKilled: see /some/folder/log.txt\n /some/folder/log.txt") == "log.txt"
    assert bench.run.last_words(" \n") == "it ended without a word"


def test_sizes_of_tools_without_a_search_are_asked_of_the_first_effort_once(bench: SimpleNamespace) -> None:
    wanted = {"names": "geoquant|gradient", "efforts": ["balanced", "best"], "only": ["geoquant", "modelopt"]}
    more = {"score_images": 8, "mct_epochs": 1, "rounding": None, "norms": None, "predictor": None, "images": 8}
    arguments = SimpleNamespace(budgets=[3.0], seeds=2, **wanted, **more)
    cells = bench.run.searched_cells(SimpleNamespace(digest="d", arguments=arguments), arguments, [2.33])
    assert len({cell.key for cell in cells}) == len(cells) == 3 * 2 + 1
    (extra,) = [cell for cell in cells if cell.budget == 2.33]
    assert (extra.contestant.name, extra.seed) == ("geoquant, balanced", 0)
