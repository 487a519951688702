"""Two Ray nodes, one killed in the middle: the same results, nothing lost, nothing run twice to completion."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_toys import cell_of_two_nodes, on_node, times
from geoquant.cluster import Cluster, Lost
from geoquant.errors import ClusterError
from geoquant.study import Store, run_study
from study_toys import toy

CELLS = 8
KINDS = ("starts", "ends")
TESTS = Path(__file__).parents[1]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster of two nodes with one processor each, and the second of them."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))
    try:
        made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = made.add_node(num_cpus=1)
    except Exception as error:  # a crowded machine: Ray gives its own processes half a minute to start
        if not re.search("timed out|timeout|within", str(error), re.IGNORECASE):
            raise
        pytest.skip(str(error))
    yield made, second
    ray.shutdown()
    made.shutdown()


def entered(address: str) -> Cluster:
    cluster = Cluster(address)
    try:
        return cluster.__enter__()
    except ClusterError as error:
        if not re.search("timed out|timeout|within", str(error), re.IGNORECASE):
            raise
        pytest.skip(str(error))


def test_a_node_dies_and_nothing_is_lost_or_done_twice(tmp_path: Path, nodes: tuple[Any, Any]) -> None:
    made, second = nodes
    raylet = second.all_processes["raylet"][0].process.pid
    study = toy([{"x": x, "marks": str(tmp_path), "doomed": raylet} for x in range(CELLS)], run=cell_of_two_nodes)

    def kill() -> None:
        while len(on_node(tmp_path, raylet)) < 2:
            time.sleep(0.05)
        made.remove_node(second, allow_graceful=False)
        (tmp_path / "dead").touch()

    killer = threading.Thread(target=kill, daemon=True)
    with entered(made.address) as cluster:
        killer.start()
        report = run_study(study, "quick", tmp_path, cluster=cluster)
        killer.join()
        again = run_study(study, "quick", tmp_path, cluster=cluster)
        found = dict(cluster.stream(times, 3, [5, 13, 6], [{"num_cpus": 1}] * 3, retries=1))
    assert (report.ran, report.failed, again.ran, again.skipped) == (CELLS, (), 0, CELLS)
    outcomes = Store(tmp_path).read_all(study.grid("quick"))
    assert [outcome.metrics["square"] for outcome in outcomes.values()] == [x * x for x in range(CELLS)]
    starts, ends = ({file.stem: file.read_text().split() for file in tmp_path.glob(f"*.{kind}")} for kind in KINDS)
    assert all(len(who) == 1 for who in ends.values())
    assert [who[0] for who in ends.values()].count(str(raylet)) == 1
    assert sorted(len(who) for who in starts.values()) == [1] * (CELLS - 1) + [2]
    assert (found[0], found[2]) == (15, 18)
    assert isinstance(found[1], Lost)
