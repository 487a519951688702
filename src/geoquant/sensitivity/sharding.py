"""How do several workers measure one table, so that nobody can tell it from one worker's?

Predictors that look at each site by itself (`by_site`) are cut by site: worker j of n takes every n-th site from the
j-th on, since early layers cost more, and rows are put back in the order of the model. Every worker sees all batches
with the same number of threads, so the numbers are the same to the last bit. Other predictors run whole, here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from geoquant.cluster import Cluster, modules_of_scripts
from geoquant.sensitivity.protocol import PREDICTORS, DamageTable, Predictor, Subject, table


def measure_sharded(predictor: Predictor, subject: Subject, cluster: Cluster) -> DamageTable:
    """Return what ``predictor.measure(subject)`` would, measured by the workers of `cluster`."""
    jobs = min(cluster.jobs, len(subject.sites))
    if jobs < 2 or not getattr(predictor, "by_site", False):
        return predictor.measure(subject)
    shards = [replace(subject, sites=subject.sites[first::jobs]) for first in range(jobs)]
    shared = (replace(subject, sites=()), predictor.name, torch.get_num_threads())
    code = modules_of_scripts([*subject.model.modules(), subject.forward])
    found = cluster.map(_measure, shared, [shard.sites for shard in shards], code)
    return _merged(predictor, subject, found)


def _measure(shared: tuple[Subject, str, int], sites: Any) -> DamageTable:
    """Measure some sites, in a worker."""
    subject, name, threads = shared
    torch.set_num_threads(threads)
    return PREDICTORS[name].measure(replace(subject, sites=sites))


def _merged(predictor: Predictor, subject: Subject, parts: list[DamageTable]) -> DamageTable:
    damage = np.empty((len(subject.sites), len(subject.grids)))
    stderr = np.empty_like(damage)
    for first, part in enumerate(parts):
        damage[first :: len(parts)], stderr[first :: len(parts)] = part.damage, part.stderr
    fixed = float(getattr(predictor, "fixed_cost", 0.0))
    cost = fixed + sum(part.cost - fixed for part in parts)
    return table(predictor.name, predictor.unit, subject, damage, stderr, cost, parts[0].samples)
