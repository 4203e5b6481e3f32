"""Nodes that are lost in mid-run: one, whose work others do, and all, after which a run resumes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.nodes import cluster_of, lose
from jobs.config import Exit, ExplainConfig

IMAGES, SHARDS = 300, 19
GIVES_UP_SECONDS = 60
RAY = Path(sys.executable).with_name("ray")


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


@pytest.mark.slow
def test_a_run_grows_with_its_cluster_and_outlives_two_nodes():
    command = [sys.executable, "benchmarks/elastic.py", "--check"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replicas lost, 960 rows, 960 different; 60 of 60 parts" in done.stdout


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_nodes_that_are_lost_take_no_row_with_them(undisturbed, tmp_path, parts_of):
    config = replace(undisturbed, out=str(tmp_path / "run"))
    log = tmp_path / "log"
    with cluster_of(2) as cluster:
        driver = command(config, cluster.address, log)
        wait_for(lambda: len(parts_of(config)) >= 2, driver, log)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_for(lambda: "a replica was lost: " in log.read_text(), driver, log)
        committed = len(parts_of(config))
        wait_for(lambda: len(parts_of(config)) > committed, driver, log)
        lose(cluster)
        lost = time.monotonic()
        assert driver.wait(timeout=GIVES_UP_SECONDS) == Exit.INCOMPLETE, log.read_text()
        assert time.monotonic() - lost < GIVES_UP_SECONDS
    assert "Traceback" not in log.read_text()
    assert committed < len(parts_of(config)) < SHARDS
    assert json.loads((Path(config.out) / "run.json").read_text())["rows"] == IMAGES
    with cluster_of(1) as cluster:
        driver = command(config, cluster.address, log)
        assert driver.wait(timeout=240) == Exit.COMPLETE, log.read_text()
    assert parts_of(config) == parts_of(undisturbed)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_node_that_is_drained_before_it_is_taken_away_takes_no_row_with_it(
    undisturbed, tmp_path, parts_of
):
    config = replace(undisturbed, out=str(tmp_path / "run"))
    log = tmp_path / "log"
    with cluster_of(2) as cluster:
        driver = command(config, cluster.address, log)
        wait_for(lambda: len(parts_of(config)) >= 2, driver, log)
        node = next(iter(cluster.worker_nodes))
        drained = subprocess.run(
            [
                RAY, "drain-node", "--address", cluster.address, "--node-id", node.node_id,
                "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
                "--deadline-remaining-seconds", "20",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert drained.returncode == 0, drained.stdout + drained.stderr
        committed = len(parts_of(config))
        wait_for(lambda: len(parts_of(config)) > committed, driver, log)
        cluster.remove_node(node, allow_graceful=False)
        assert driver.wait(timeout=240) == Exit.COMPLETE, log.read_text()
    assert "Traceback" not in log.read_text()
    assert parts_of(config) == parts_of(undisturbed)
