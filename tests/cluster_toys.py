"""Functions that light workers run: they import no torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def times(shared: int, item: int) -> int:
    """Multiply; a worker that is to work on 13 dies."""
    if item == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return shared * item


def cell_of_two_nodes(configuration: Mapping[str, Any]) -> dict[str, int]:
    """Square a number, on one of two nodes.

    On the doomed one (whose raylet has the given process id), the first cell ends well and any later one
    waits for its death; on the other, cells wait until the doomed one is dead.
    """
    import time

    marks, x = Path(configuration["marks"]), configuration["x"]
    with (marks / f"{x}.starts").open("a") as file:
        file.write(f"{os.getppid()}\n")
    if os.getppid() == configuration["doomed"]:
        if len(on_node(marks, configuration["doomed"])) > 1:
            time.sleep(600)
    else:
        while not (marks / "dead").exists():
            time.sleep(0.05)
    with (marks / f"{x}.ends").open("a") as file:
        file.write(f"{os.getppid()}\n")
    return {"square": x * x}


def on_node(marks: Path, raylet: int) -> list[Path]:
    """Return the marks of cells that a node has started."""
    return [file for file in marks.glob("*.starts") if str(raylet) in file.read_text().split()]
