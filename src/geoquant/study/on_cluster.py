"""Cells as tasks of a Ray cluster.

Every cell asks for what its study says it needs. A cell whose worker is lost runs again elsewhere; a cell that came to
an end does not, since its outcome is carried here, and written, as soon as it is known. A cell that kills its workers
again and again is reported as failed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from geoquant.cluster import Cluster, Lost
from geoquant.study.declaration import Cell, Study
from geoquant.study.executing import Run, died, execute
from geoquant.study.store import Outcome

RETRIES = 3


def on_cluster(study: Study, cells: Sequence[Cell], cluster: Cluster) -> Generator[tuple[Cell, Outcome]]:
    """Yield cells with their outcomes as they finish on the workers of `cluster`."""
    reserved = [study.resources(cell.configuration) for cell in cells]
    for place, found in cluster.stream(_execute, study.run, cells, reserved, retries=RETRIES):
        yield cells[place], died(found.reason) if isinstance(found, Lost) else found


def _execute(run: Run, cell: Cell) -> Outcome:
    """Run a cell, in a worker."""
    torch.set_num_threads(1)
    return execute(run, cell)
