"""Several workers measure what one measures, bit for bit; only predictors that promise it are cut by site."""

from __future__ import annotations

import posixpath
import re
from dataclasses import replace

import pytest
import torch

import geoquant as gq
from geoquant.cluster import Cluster
from geoquant.errors import ClusterError
from geoquant.sensitivity import PREDICTORS, make_subject
from geoquant.sensitivity.sharding import measure_sharded
from nets import small_batches, small_net


class Here:
    """A cluster in this process, which counts what it was given."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.items = jobs, []

    def map(self, function, shared, items, code=()):
        self.items = [[site.name for site in item] for item in items]
        return [function(shared, item) for item in items]


def subject():
    return make_subject(small_net(), small_batches(2), grids=["int2", "int4", "int8"], seed=1)


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("name", sorted(name for name in PREDICTORS if getattr(PREDICTORS[name], "by_site", False)))
def test_tables_of_shards_are_the_whole_table(name, jobs):
    workers = Here(jobs)
    assert measure_sharded(PREDICTORS[name], subject(), workers) == PREDICTORS[name].measure(subject())
    shared = sorted(site for item in workers.items for site in item)
    assert shared == ([] if jobs == 1 else ["block", "head", "stem"])


def test_predictors_that_look_across_sites_are_not_cut():
    workers = Here(2)
    assert measure_sharded(PREDICTORS["fit"], subject(), workers) == PREDICTORS["fit"].measure(subject())
    assert workers.items == []


def test_a_row_must_not_depend_on_the_other_sites():
    """The promise behind `by_site`, and a predictor that does not hold it: the distance at all sites' layers."""
    whole = PREDICTORS["nmse"].measure(subject())
    alone = PREDICTORS["nmse"].measure(replace(subject(), sites=subject().sites[:1]))
    assert whole.row("stem") != alone.row("stem")
    assert not getattr(PREDICTORS["nmse"], "by_site", False)


def test_two_ray_workers_give_the_same_profile(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # "local" is this machine, whatever else runs or is set
    model, batches = (
        torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)),
        [torch.ones(4, 6)],
    )
    cluster = Cluster("local", 2)
    try:
        cluster.__enter__()
    except ClusterError as error:  # a crowded machine: Ray gives its own processes a minute to start
        if not re.search("timed out|timeout|within", str(error), re.IGNORECASE):
            raise
        pytest.skip(str(error))
    with cluster:
        shared = gq.profile(model, batches, cluster=cluster)
        with pytest.raises(TypeError):
            cluster.map(posixpath.join, "a", ["b", 1])
        assert cluster.map(posixpath.join, "a", ["b", "c", "d"]) == ["a/b", "a/c", "a/d"]
    assert shared == gq.profile(model, batches)


def test_bad_clusters_are_refused():
    with pytest.raises(ClusterError, match="leaves nobody to work"):
        Cluster("local", 0)
