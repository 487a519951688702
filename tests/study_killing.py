"""Start a study of small cells and kill it, again and again; say what was found after every death.

    python study_killing.py FOLDER LIVES SEED

torch is imported once: every life is a fork of this process. A life ends a random moment after a random number of
cells, so that how busy the machine is does not matter.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from geoquant.study import Store, Study, run_study
from study_toys import numbers, toy

CELLS = 400
MOST, LONGEST = 7, 0.01


def study(folder: Path) -> Study:
    return toy(numbers(CELLS, marks=str(folder), seconds=0.001))


def live_and_die(folder: Path, count: int, seconds: float) -> int:
    """Run the study in a fork until so many cells are done, and so long; return how it ended, minus the signal."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        try:
            run_study(study(folder), "quick", folder, watch=lambda *_: os.write(theirs, b"."))
        finally:
            os._exit(0)
    os.close(theirs)
    for _ in range(count):
        os.read(ours, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.close(ours)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, lives: int, seed: int) -> None:
    draw = random.Random(seed)
    store, cells = Store(folder), study(folder).grid("quick")
    finished: dict[str, bytes] = {}
    starts_of_finished: dict[str, int] = {}
    lost, changed, repeated, promised, ends = 0, 0, 0, 0, []
    for _ in range(lives):
        count = draw.randint(0, MOST)
        promised += count
        ends.append(live_and_die(folder, count, draw.uniform(0, LONGEST)))
        now = {cell.key: store.path(cell).read_bytes() for cell in cells if store.path(cell).exists()}
        outcomes = store.read_all(cells)  # raises on half a file
        starts = {
            cell.key: len((folder / f"{cell.configuration['x']}.starts").read_text().splitlines())
            for cell in cells
            if cell.key in now
        }
        assert all(outcome.metrics["square"] >= 0 for outcome in outcomes.values())
        lost += len(finished.keys() - now.keys()) + max(0, promised - len(now))
        changed += sum(now.get(key) != text for key, text in finished.items())
        repeated += sum(starts[key] != count for key, count in starts_of_finished.items())
        finished, starts_of_finished = now, starts
    report = run_study(study(folder), "quick", folder)
    values = [outcome.metrics["square"] for outcome in store.read_all(cells).values()]
    facts = {"lost": lost, "changed": changed, "repeated": repeated, "ends": ends, "skipped": report.skipped}
    left = [path.name for path in (folder / "toy").iterdir() if path.suffix != ".json" and path.name != ".lock"]
    print(json.dumps({**facts, "right": values == [x * x for x in range(CELLS)], "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
