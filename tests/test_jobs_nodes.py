"""Nodes that are lost in mid-run: one, whose work others do, and all, after which a run resumes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.weed import free_ports
from jobs.cluster import OWN_CLUSTER
from jobs.config import Exit, ExplainConfig
from storage.locations import Location

IMAGES, SHARDS = 300, 19
GIVES_UP_SECONDS = 60
# As Ray's own, but quick to give up: a head node that is lost, and a node that refuses connections.
QUICK = {
    **OWN_CLUSTER,
    "gcs_rpc_server_reconnect_timeout_s": 10,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
NODE: dict[str, Any] = {"object_store_memory": 100 * 2**20}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A cluster with a head that works not at all, and nodes with a replica each."""
    from ray.cluster_utils import Cluster

    (port,) = free_ports(1)
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "dashboard_port": port}
    head["_system_config"] = QUICK
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **NODE)
        yield cluster
    finally:
        lose(cluster)


def lose(cluster: Any) -> None:
    """Lose every node at once, the head among them."""
    for node in [*cluster.worker_nodes, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def parts(config: ExplainConfig) -> dict[str, bytes]:
    folder = Location(config.out).child("explanations")
    return {name: folder.child(name).read() for name in folder.names()}


def command(config: ExplainConfig, address: str, log: Path) -> subprocess.Popen:
    arguments = [
        "explain", "--out", config.out, "--images", config.input.images,
        "--model", config.model.name, "--checkpoint", config.model.checkpoint,
        "--model-args", config.model.model_args, "--address", address,
        "--replicas", "2", "--batch-size", str(config.execution.batch_size),
    ]  # fmt: skip
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments], stdout=output, stderr=output
        )


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.005)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_nodes_that_are_lost_take_no_row_with_them(undisturbed, tmp_path):
    config = replace(undisturbed, out=str(tmp_path / "run"))
    log = tmp_path / "log"
    with cluster_of(2) as cluster:
        driver = command(config, cluster.address, log)
        wait_for(lambda: len(parts(config)) >= 2, driver, log)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_for(lambda: "a replica was lost: " in log.read_text(), driver, log)
        committed = len(parts(config))
        wait_for(lambda: len(parts(config)) > committed, driver, log)
        lose(cluster)
        lost = time.monotonic()
        assert driver.wait(timeout=GIVES_UP_SECONDS) == Exit.INCOMPLETE, log.read_text()
        assert time.monotonic() - lost < GIVES_UP_SECONDS
    assert "Traceback" not in log.read_text()
    assert committed < len(parts(config)) < SHARDS
    assert json.loads((Path(config.out) / "run.json").read_text())["rows"] == IMAGES
    with cluster_of(1) as cluster:
        driver = command(config, cluster.address, log)
        assert driver.wait(timeout=240) == Exit.COMPLETE, log.read_text()
    assert parts(config) == parts(undisturbed)
