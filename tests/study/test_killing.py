"""A run that is killed at any moment loses no finished cell, leaves no half a file, and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from geoquant.study import Store
from study_toys import numbers, toy

HERE = Path(__file__).parents[1]
LIVES = 50


def test_fifty_deaths_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "study_killing.py"), str(tmp_path), str(LIVES), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["lost"], facts["changed"], facts["repeated"]) == (0, 0, 0)
    assert facts["right"]
    assert facts["left"] == []
    assert facts["ends"] == [-signal.SIGKILL] * LIVES
    assert facts["skipped"] >= 2 * LIVES


def test_workers_die_with_their_run(tmp_path: Path) -> None:
    """Their cells are started again, by nobody but the next run."""
    script = (
        "import sys; from study_toys import numbers, toy; from geoquant.study import run_study\n"
        "run_study(toy(numbers(4, marks=sys.argv[1], seconds=600)), 'quick', sys.argv[1], jobs=2)"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=HERE)
    try:
        workers = _wait(lambda: [int(file.read_text()) for file in tmp_path.glob("*.starts")], 2)
    finally:
        run.kill()
        run.wait()
    assert len(set(workers)) == 2
    assert run.pid not in workers
    _wait(lambda: [worker for worker in workers if not _alive(worker)], 2)
    assert Store(tmp_path).read_all(toy(numbers(4, marks=str(tmp_path), seconds=600)).grid("quick")) == {}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def _wait(look, count: int) -> list[int]:
    deadline = time.monotonic() + 300
    while len(found := look()) < count:
        assert time.monotonic() < deadline, "nothing came of it in five minutes"
        time.sleep(0.05)
    return found
