"""`geoquant profile --geometry` says its price, shows a row per layer, and gives programs the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geoquant.cli import main
from geoquant.sensitivity import Profile

NETS = str(Path(__file__).parents[1] / "nets.py")
MODEL, DATA = f"{NETS}:small_net", f"{NETS}:small_batches"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0), *capsys.readouterr()


def test_profile_shows_the_geometry_and_stores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "prof")
    code, out, err = run(capsys, "profile", MODEL, "--data", DATA, "--grids", "int4,int8", "--output", folder)
    assert code == 0
    assert "geometry: about" in err
    stored = Profile.load(folder).geometry
    assert stored is not None
    for site in stored.sites:
        row = next(line for line in out.splitlines() if line.startswith(f"{site.site} ") and "[" in line)
        assert f"{site.hessian_trace.value:.4g}" in row
        assert f"{site.spectral_norm.value:.4g}" in row
    assert "curvature κ in the input: 0 (exact: piecewise affine" in out
    assert "kink density" in out


def test_json_has_every_number_and_no_geometry_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["profile", MODEL, "--data", DATA, "--grids", "int4", "--output", str(tmp_path / "prof"), "--json"]
    _, out, _ = run(capsys, *common)
    document = json.loads(out)["geometry"]
    assert [site["site"] for site in document["sites"]] == ["stem", "block", "head"]
    assert document["sites"][0]["gauss_newton_trace"]["exact"] is True
    _, out, err = run(capsys, *common, "--no-geometry")
    assert "geometry" not in json.loads(out)
    assert "geometry" not in err


def test_report_with_a_plan_has_its_error_tiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prof, plan, page = (str(tmp_path / name) for name in ("prof", "plan.json", "page.html"))
    run(capsys, "profile", MODEL, "--data", DATA, "--grids", "int4,int8", "--output", prof, "--no-geometry")
    run(capsys, "allocate", prof, "--average-bits", "6", "--output", plan)
    more = ["--model", MODEL, "--data", DATA, "--budgets", "6", "--output", page]
    code, _, _ = run(capsys, "report", prof, "--plan", plan, *more)
    assert code == 0
    text = Path(page).read_text()
    for name in ("error_bound", "error_estimate", "error_observed", 'id="waterfall"'):
        assert name in text
    run(capsys, "report", prof, "--plan", plan, *more, "--tier-images", "0")
    assert 'id="waterfall"' not in Path(page).read_text()
