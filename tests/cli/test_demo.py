"""The first command of the README tells the whole story, and the story is true."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from geoquant.cli.app import app
from geoquant.plan import Plan


def test_the_demo_tells_the_truth(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.stdout)

    # a plan of a uniform one's bytes takes no more, and what is saved has the size of its plan
    sizes = {
        name: [point["bytes"] for point in document["points"] if point["method"] == name]
        for name in ("uniform", "geoquant")
    }
    assert all(ours <= theirs for ours, theirs in zip(sizes["geoquant"], sizes["uniform"], strict=True))
    saved = tmp_path / "w3"
    assert document["bytes"] == Plan.load(saved).bytes == (saved / "model.safetensors").stat().st_size

    # a plan that rounding does not survive is foreseen and mended
    recovery = document["recovery"]
    nearest, rounded, trained = (each["kl"] for each in recovery["results"].values())
    assert recovery["verdict"] == "qat"
    assert nearest > rounded > 0.05 > trained

    # training in few bits keeps the accuracy
    exact, *few = document["training"]
    assert all(each["accuracy"] > exact["accuracy"] - 0.02 for each in few)
    assert few[-1]["average_bits"] < few[0]["average_bits"] < exact["average_bits"]

    page = (tmp_path / "report.html").read_text()
    assert all(f'<section id="{part}"' in page for part in ("results", "plans", "diagnosis", "recovery", "error"))
