"""The README's numbers are those of the committed results, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from geoquant.cli import app

ROOT = Path(__file__).parents[1]


def test_tables_equal_the_committed_results() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run python benchmarks/tables.py\n{done.stderr}"


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []


def test_every_command_of_the_documents_is_real() -> None:
    known = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    texts = "".join((ROOT / name).read_text() for name in ("README.md", "docs/cli.md", "docs/index.md"))
    used = set(re.findall(r"geoquant +([a-z]+)\b(?= )", texts)) & {"profile", "allocate", "quantize", "evaluate"}
    shown = set(re.findall(r"^\$ geoquant +([a-z]+)", texts, re.MULTILINE))
    assert shown <= known
    assert used == {"profile", "allocate", "quantize", "evaluate"}
