"""Nodes that are lost in mid-run: one, whose work others do, and all, after which a run resumes."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.weed import free_ports
from jobs.config import Exit, ExplainConfig
from storage.locations import Location

IMAGES, SHARDS = 300, 19
# Ray itself gives a lost head node up after 60 s.
GIVES_UP_SECONDS = 120
NODE: dict[str, Any] = {"object_store_memory": 100 * 2**20}


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster with a head that works not at all, and two nodes with a replica each."""
    from ray.cluster_utils import Cluster

    (port,) = free_ports(1)
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "dashboard_port": port}
    # Else Ray ends loading processes that are idle for a second, and each takes long to start.
    head["_system_config"] = {"idle_worker_killing_time_threshold_ms": 600_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
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


def wait_for_parts(config: ExplainConfig, number: int, driver: subprocess.Popen) -> None:
    folder = Location(config.out).child("explanations")
    until = time.monotonic() + 240
    while len(folder.names()) < number:
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.timeout(900)
def test_nodes_that_are_lost_take_no_row_with_them(undisturbed, tmp_path):
    config = replace(undisturbed, out=str(tmp_path / "run"))
    log = tmp_path / "log"
    with two_nodes() as cluster:
        driver = command(config, cluster.address, log)
        wait_for_parts(config, 2, driver)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_for_parts(config, 4, driver)
        assert driver.poll() is None, log.read_text()
        lose(cluster)
        lost = time.monotonic()
        assert driver.wait(timeout=GIVES_UP_SECONDS) == Exit.INCOMPLETE, log.read_text()
        assert time.monotonic() - lost < GIVES_UP_SECONDS
    told = log.read_text()
    assert "a replica was lost: " in told
    assert "Traceback" not in told
    written = parts(config)
    assert 4 <= len(written) < SHARDS
    assert json.loads((Path(config.out) / "run.json").read_text())["rows"] == IMAGES
    with two_nodes() as cluster:
        driver = command(config, cluster.address, log)
        wait_for_parts(config, len(written) + 1, driver)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        assert driver.wait(timeout=240) == Exit.COMPLETE, log.read_text()
    assert parts(config) == parts(undisturbed)
