"""What is an experiment? Cells, a function that runs one, and what is read off the finished ones.

A study is a frozen declaration. A *cell* is one configuration, plain JSON, that `Study.run` turns into figures; its key
is a hash of the configuration, the study's name and version. So a changed configuration is another cell, and cells
whose configuration stayed keep their results. The version is raised by hand when the code behind `run` measures
something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from geoquant.errors import StudyError
from geoquant.findings import Claim, Figure, Table
from geoquant.registry import Registry
from geoquant.storage import canonical, digest
from geoquant.study.results import Results

Preset = Literal["quick", "laptop", "full"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
Configuration = Mapping[str, Any]
KEY_LENGTH = 24


@dataclass(frozen=True)
class Cell:
    """One configuration of one study.

    Attributes:
        study: its name.
        version: of the study.
        configuration: plain JSON.

    >>> Cell("toy", 1, {"bits": 3, "net": "mlp"}).label
    'bits=3 net=mlp'
    >>> Cell("toy", 1, {"bits": 3}).key == Cell("toy", 2, {"bits": 3}).key
    False
    """

    study: str
    version: int
    configuration: Configuration

    @cached_property
    def key(self) -> str:
        """A hash of everything that this value holds; the order of the configuration's names does not matter."""
        document = {"study": self.study, "version": self.version, "configuration": dict(self.configuration)}
        try:
            return digest(document)[:KEY_LENGTH]
        except (TypeError, ValueError) as error:
            raise StudyError(
                f"a configuration of the study '{self.study}' is not plain JSON ({error}): {self.configuration}"
            ) from error

    @property
    def label(self) -> str:
        """The configuration in a line, in the order in which it was written; what ``--only`` matches."""
        return " ".join(f"{name}={_word(value)}" for name, value in self.configuration.items())


def _word(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


def _always(_: Configuration) -> str | None:
    return None


def _one_processor(_: Configuration) -> Mapping[str, float]:
    return {"num_cpus": 1}


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes:
        name: of lower-case letters, digits and hyphens; what is typed, and a folder.
        title: one line.
        source: a heading of docs/sources.md, or papers.
        question: what a reader wants to know, in one or two sentences.
        cells: the configurations of each preset, each preset's in the order in which they are run. ``quick`` takes
            minutes on two cores, ``laptop`` has the scale of the sources, ``full`` wants a GPU. They may share cells.
        run: turns a configuration into plain JSON: numbers, texts, lists. A list of flat objects under ``rows`` is kept
            as a table. It must be importable by name, for other processes; it seeds what it draws.
        version: raised when `run` measures something else than before.
        claims, figures, tables: what is read off the finished cells, which may be any part of the preset's; a figure
            that they leave empty is None.
        unavailable: says why a cell cannot run here (a data set is missing), or None.
        resources: what Ray reserves for a cell, such as ``{"num_cpus": 1, "num_gpus": 0.25, "memory": 2e9}``.

    Raises:
        StudyError: the name has other letters, or a preset is missing.
    """

    name: str
    title: str
    source: str
    question: str
    cells: Mapping[Preset, Callable[[], Iterable[Configuration]]]
    run: Callable[[Configuration], Mapping[str, Any]]
    version: int = 1
    claims: Sequence[Callable[[Results], Claim]] = ()
    figures: Sequence[Callable[[Results], Figure | None]] = ()
    tables: Sequence[Callable[[Results], Table]] = ()
    unavailable: Callable[[Configuration], str | None] = _always
    resources: Callable[[Configuration], Mapping[str, float]] = field(default=_one_processor)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise StudyError(f"'{self.name}' cannot name a study; expected words of a–z and 0–9 joined by hyphens")
        if set(self.cells) != set(PRESETS):
            raise StudyError(f"the study '{self.name}' has cells for {sorted(self.cells)}; expected {list(PRESETS)}")

    def grid(self, preset: Preset) -> tuple[Cell, ...]:
        """Return the cells of a preset.

        Raises:
            StudyError: there are none, two are the same, or one is not JSON.
        """
        found = tuple(Cell(self.name, self.version, configuration) for configuration in self.cells[preset]())
        if not found:
            raise StudyError(f"the study '{self.name}' has no cell in the preset {preset}")
        seen: set[str] = set()
        for cell in found:
            if cell.key in seen:
                raise StudyError(f"the study '{self.name}' has the cell {cell.label} twice in the preset {preset}")
            seen.add(cell.key)
        return found

    def command(self, preset: Preset) -> str:
        """Return what runs it from a shell."""
        return f"geoquant study run {self.name} --preset {preset}"


STUDIES: Registry[Study] = Registry("study")


def register(study: Study) -> Study:
    """Add a study under its name; return it."""
    STUDIES.register(study.name, study)
    return study
