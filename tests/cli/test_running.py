"""`python -m geoquant` is the program `geoquant`: the same words, errors and exit codes."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import geoquant as gq
from geoquant.cli import main


def run_module(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "geoquant", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_it_runs_as_a_module() -> None:
    assert run_module("--version") == (0, f"geoquant {gq.__version__}\n", "")


def test_bad_input_is_the_same_sentence_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "no-such-file"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr()
    assert said.err.startswith("geoquant: ")
    assert run_module(*words) == (stop.value.code, said.out, said.err) == (2, "", said.err)


def test_importing_it_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["geoquant", "no-such-command"])
    monkeypatch.delitem(sys.modules, "geoquant.__main__", raising=False)
    assert importlib.import_module("geoquant.__main__").main is main
