"""Cells in several processes of this machine, without Ray.

Every worker is a process with one thread that takes one cell at a time. A worker that dies (out of memory, killed, a
crash in native code) costs its cell, which is reported as failed, and is replaced. Workers do not survive the
process that started them, so that nobody goes on working for a run that was killed. They are forked from a server
that has imported this module and done nothing else: importing torch takes seconds, and is done once.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from geoquant.errors import StudyError
from geoquant.study.declaration import Cell
from geoquant.study.executing import Run, died, execute
from geoquant.study.store import Outcome


def in_processes(run: Run, cells: Sequence[Cell], jobs: int) -> Generator[tuple[Cell, Outcome]]:
    """Yield cells with their outcomes as they finish, at most `jobs` at a time.

    Args:
        run: importable by name, since the processes start empty.
        cells: started in this order.
        jobs: processes.

    Raises:
        StudyError: `run` is no function of a module, or a process cannot import it.
    """
    try:
        pickle.dumps(run)
    except (pickle.PicklingError, AttributeError) as error:
        raise StudyError(
            f"{run} cannot be sent to another process: it is no function of a module; use jobs=1"
        ) from error
    waiting = deque(cells)
    workers = [_Worker(run) for _ in range(min(jobs, len(waiting)))]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := [worker for worker in workers if worker.cell is not None]:
            for worker in _ready(busy):
                finished = worker.take()
                if finished is None:
                    continue
                if waiting:
                    worker.give(waiting.popleft())
                yield finished
    finally:
        for worker in workers:
            worker.stop()


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a worker says something or dies; return those that did."""
    lines = wait([worker.line for worker in workers if worker.line is not None])
    return [worker for worker in workers if worker.line in lines]


class _Worker:
    """A process, started when there is something for it to do, and again after it died."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.process: BaseProcess | None = None
        self.line: Connection | None = None
        self.life: Connection | None = None
        self.cell: Cell | None = None
        self.imported = False
        self.since = 0.0

    def give(self, cell: Cell) -> None:
        """Let it work on a cell."""
        if self.line is None:
            self._start()
        self.cell, self.since = cell, time.perf_counter()
        assert self.line is not None
        with suppress(OSError):  # it died meanwhile, which `take` finds out
            self.line.send(cell)

    def take(self) -> tuple[Cell, Outcome] | None:
        """Return its cell with what came of it; None when it only says that it is up."""
        assert self.line is not None
        assert self.cell is not None
        cell = self.cell
        try:
            said: Outcome | None = self.line.recv()
        except (EOFError, OSError):
            said = self._death()
        if said is None:
            self.imported = True
            return None
        self.cell = None
        return cell, said

    def stop(self) -> None:
        """End it, whatever it does."""
        if self.process is not None and self.line is not None and self.life is not None:
            self.process.terminate()
            self.process.join()
            self.line.close()
            self.life.close()
        self.line, self.life, self.process, self.imported = None, None, None, False

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.line, theirs = context.Pipe()
        watched, self.life = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(self.run, theirs, watched), daemon=True)
        self.process.start()
        theirs.close()  # so that its death closes the line
        watched.close()

    def _death(self) -> Outcome:
        assert self.process is not None
        self.process.join()
        code, imported = self.process.exitcode, self.imported
        self.stop()
        if not imported:
            where = f"{getattr(self.run, '__module__', '?')}.{getattr(self.run, '__qualname__', '?')}"
            raise StudyError(f"a worker could not start (exit code {code}): can another process import {where}?")
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return died(f"its process ended with {how}", time.perf_counter() - self.since)


def _work(run: Run, line: Connection, life: Connection) -> None:
    """Run what comes through the line until it closes; in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told as well, and ends this process
    threading.Thread(target=_watch, args=(life,), daemon=True).start()
    torch.set_num_threads(1)
    line.send(None)
    while True:
        try:
            cell: Cell = line.recv()
        except EOFError:
            return
        line.send(execute(run, cell))


def _watch(life: Connection) -> None:
    """End this process when the run is gone, and its end of the pipe with it; in the middle of a cell, too."""
    with suppress(EOFError, OSError):
        life.recv()
    os._exit(1)
