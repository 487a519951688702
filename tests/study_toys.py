"""A study of arithmetic: cells that take no time, some of which fail."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoquant.study import Study


def square(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Square a number, leaving a mark that it was; fail where the configuration or a file says so."""
    marks = configuration.get("marks")
    if marks is not None:
        with (Path(marks) / f"{configuration['x']}.starts").open("a") as file:
            file.write(f"{os.getpid()}\n")
    if "broken" in configuration and Path(configuration["broken"]).exists():
        raise ArithmeticError(f"{configuration['x']} cannot be squared today")
    if configuration.get("dies"):
        os.kill(os.getpid(), 9)
    time.sleep(configuration.get("seconds", 0))
    return {"square": configuration["x"] ** 2, "rows": [{"power": n, "value": configuration["x"] ** n} for n in (1, 2)]}


def toy(configurations: list[dict[str, Any]], name: str = "toy", **options: Any) -> Study:
    """Return a study with these cells in every preset."""
    grids = dict.fromkeys(("quick", "laptop", "full"), lambda: configurations)
    return Study(name, "Squares", "school", "What is x times x?", grids, **{"run": square, **options})


def numbers(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return configurations for the numbers below `count`."""
    return [{"x": x, **more} for x in range(count)]
