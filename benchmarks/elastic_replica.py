"""A replica for logical GPUs: computes on the CPU, takes its time, and notes who loads for it."""

import os
import time
from pathlib import Path
from typing import Any

import ray

from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.replica import Replica
from jobs.worker import Job, ShardReport

# A folder for notes, and how long a shard takes at least.
NOTES, SECONDS = "SALIENCY_ELASTIC_NOTES", "SALIENCY_ELASTIC_SECONDS"


def note_and_load(*given: Any) -> Batch:  # noqa: ANN401 - as load_batch takes it
    """Load a batch, and leave a file that is named for this node."""
    (Path(os.environ[NOTES]) / ray.get_runtime_context().get_node_id()).touch()
    return load_batch(*given)


class SlowReplica(Replica):
    """Holds a logical GPU and computes on the CPU."""

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        on_cpu = Job(**{**vars(job), "device": "cpu", "threads": 1})
        super().__init__(on_cpu, loader_cpus, ahead)
        self.feed.load = ray.remote(num_cpus=loader_cpus, scheduling_strategy="SPREAD")(
            note_and_load
        )

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """As a replica does, but not sooner than after some time."""
        time.sleep(float(os.environ[SECONDS]))
        return super().explain(shard, upcoming)
