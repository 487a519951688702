"""The tutorial runs from top to bottom in a fresh kernel, and the committed copy holds its output and no error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import geoquant

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict) -> set[str]:
    return {output["output_type"] for output in cell["outputs"] if output.get("name") != "stderr"}


def test_the_committed_copy_shows_what_came_out() -> None:
    cells = code_cells(TUTORIAL)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(kinds(cell) <= {"stream", "display_data", "execute_result"} for cell in cells)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert not any("/tmp/" in "".join(output.get("text", [])) for cell in cells for output in cell["outputs"])


def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    copy = tmp_path / "tutorial.ipynb"
    copy.write_text(TUTORIAL.read_text(encoding="utf-8"), encoding="utf-8")
    places = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = os.environ | dict.fromkeys(places, str(tmp_path / "jupyter"))
    environment["PYTHONPATH"] = str(Path(geoquant.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", "--timeout=-1", copy.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [kinds(cell) for cell in code_cells(copy)] == [kinds(cell) for cell in code_cells(TUTORIAL)]
