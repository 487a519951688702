"""What every benchmark shares: where a number was born, and how results are written."""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import geoquant
from geoquant.storage import canonical, write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="where the results go")
    made.add_argument("--threads", type=int, default=2, help="torch threads")
    return made


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say which command, code and versions made the numbers."""
    own = [Path(part).is_absolute() or Path(part).exists() for part in sys.argv]  # no folder of one machine
    parts = [Path(part).name if folder else part for part, folder in zip(sys.argv, own, strict=True)]
    command = shlex.join(["python", *parts])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE
    ).stdout.strip()
    return {
        "command": command.replace("python ", "python benchmarks/", 1),
        "commit": commit,
        "geoquant": geoquant.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "arguments": {key: str(value) for key, value in vars(arguments).items() if not isinstance(value, Path)},
    }


def write_results(arguments: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write the results with their provenance, atomically."""
    import json

    document = {"provenance": provenance(arguments), **content}
    canonical(document)  # refuses NaN and Inf before anything is written
    write_text(arguments.output, json.dumps(document, indent=1) + "\n")
    print(f"wrote {arguments.output}")
