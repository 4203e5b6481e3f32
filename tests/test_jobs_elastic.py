"""Replicas that are late, too few, or share a GPU."""

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from jobs.cluster import connected, grown, resources
from jobs.config import ConfigurationError, Exit
from jobs.explain import explain
from jobs.plan import Shard
from jobs.replica import Replica
from jobs.replica_config import Bounds, ReplicaConfig
from jobs.worker import ShardReport

SHARDS = 19


@pytest.mark.slow
def test_a_late_shard_is_explained_by_a_second_replica_too(undisturbed, tmp_path, parts_of):
    marker = tmp_path / "late"

    class LateOnce(Replica):
        def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
            if shard.index == SHARDS - 3 and not marker.exists():
                marker.touch()
                time.sleep(600)  # nothing but the end of the run ends it
            return super().explain(shard, upcoming)

    config = replace(undisturbed, out=str(tmp_path / "run"))
    console = Console(file=io.StringIO(), width=200)
    code = explain(config, console, LateOnce)
    told = console.file.getvalue()
    assert code is Exit.COMPLETE, told
    assert marker.exists()
    assert f"shard {SHARDS - 3} takes long: a second replica explains it too" in told
    assert "a replica was lost" not in told
    assert parts_of(config) == parts_of(undisturbed)


def test_too_few_replicas_end_the_wait_as_none_do(run_job, small_config, tmp_path):
    execution = replace(
        small_config.execution, device="cuda", start_timeout=1.0, replicas="3:9", replicas_per_gpu=4
    )
    code, told = run_job(replace(small_config, out=str(tmp_path / "run"), execution=execution))
    assert code is Exit.INCOMPLETE
    assert (
        "0 of 9 replicas at work, which is fewer than 3, for 1 s; each asks one node for 0.25 GPUs "
        "and 0 CPUs; the nodes have 0 GPUs and 4 CPUs"
    ) in told


def test_a_gpu_that_is_not_there_cannot_be_shared(run_job, small_config, tmp_path):
    execution = replace(small_config.execution, replicas_per_gpu=2)
    code, told = run_job(replace(small_config, out=str(tmp_path / "run"), execution=execution))
    assert code is Exit.BAD_INPUT
    assert "--replicas-per-gpu 2 needs GPUs; the cluster has none" in told


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        (None, Bounds(1, None)),
        (3, Bounds(1, 3)),
        ("3", Bounds(1, 3)),
        ("2:8", Bounds(2, 8)),
        ("2:2", Bounds(2, 2)),
        ("2:", Bounds(2, None)),
    ],
)
def test_what_is_said_of_replicas_is_read(asked, bounds):
    assert ReplicaConfig(replicas=asked).bounds == bounds
    assert ReplicaConfig(replicas=asked).problems() == []


@pytest.mark.parametrize("asked", [0, -1, "0:2", "3:2", ":2", "two", "1:2:3", "", "1.5"])
def test_what_is_no_number_of_replicas_is_refused(asked):
    (problem,) = ReplicaConfig(replicas=asked).problems()
    assert problem == (
        f"--replicas is N, MIN:MAX or MIN:, with 1 <= MIN <= MAX; got {str(asked)!r}"
    )


def test_gpus_of_a_cpu_are_not_shared():
    (problem,) = ReplicaConfig(device="cpu", replicas_per_gpu=2).problems()
    assert problem == "--replicas-per-gpu needs GPUs; got --device cpu"


def test_replicas_grow_to_what_the_cluster_has_and_never_shrink(ray_address):
    """The tests' cluster has four CPUs and no GPU: room for one CPU replica."""
    with connected(ray_address):
        cpu = resources(ReplicaConfig())
        assert (cpu.device, cpu.replicas, cpu.replica_cpus, cpu.threads) == ("cpu", 1, 4.0, 4)
        assert resources(ReplicaConfig(replicas="2:")).replicas == 2
        assert grown(replace(cpu, replicas=7), Bounds(1, None)).replicas == 7
        assert grown(replace(cpu, replicas=2), Bounds(1, 5)).replicas == 5
        gpu = resources(ReplicaConfig(device="cuda", replicas="2:", replicas_per_gpu=7))
        assert (gpu.replicas, gpu.ahead, gpu.replica_gpus) == (2, 2 + 4 // 2, 0.1428)
        assert 7 * gpu.replica_gpus <= 1
        with pytest.raises(ConfigurationError, match="needs GPUs; the cluster has none"):
            resources(ReplicaConfig(replicas_per_gpu=2))
