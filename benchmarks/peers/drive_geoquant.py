"""geoquant itself: profile, allocate, quantize, in a process of its own like every peer.

Options: ``effort``, ``rounding``, ``norms`` (see `geoquant.quantize_`) and ``predictor``; None is left to geoquant.
"""

from __future__ import annotations

from typing import Any

from driving import Job, LayerFormat

import geoquant as gq
from geoquant.sensitivity import DEFAULT_GRIDS, NARROW_GRIDS


def run(job: Job) -> None:
    batches = job.batches(128)
    predictor = job.options["predictor"]
    chosen: dict[str, Any] = {} if predictor is None else {"predictors": [predictor]}
    if job.budget <= gq.uniform_plan(job.model, DEFAULT_GRIDS[0]).average_bits:
        chosen["grids"] = (*NARROW_GRIDS, *DEFAULT_GRIDS)
    job.started()
    profile = gq.profile(job.model, batches, seed=job.seed, **chosen)
    plan = gq.allocate(profile, gq.Budget(average_bits=job.budget))
    settings = {name: job.options[name] for name in ("effort", "rounding", "norms") if job.options[name] is not None}
    gq.quantize_(job.model, plan, batches, **settings, seed=job.seed)
    job.stopped()
    layers = {name: LayerFormat(grid.bits) for name, grid in zip(plan.inventory.names, plan.grids, strict=True)}
    job.answer(job.model, layers, grids=list(plan.names))


if __name__ == "__main__":
    Job.drive(run)
