"""A replica that looks into a finished run again: a Ray actor around the worker of its job."""

from collections.abc import Mapping
from dataclasses import asdict

from jobs.plan import Shard
from jobs.process import set_up
from jobs.replica import ReplicaInfo, loading, replica_info
from jobs.row_images import RerunJob
from jobs.watched_replica import WatchedReplica
from jobs.worker import ShardReport


class RerunReplica:
    """Does shards one at a time; the pool calls it as it calls a Replica."""

    def __init__(self, job: RerunJob, loader_cpus: float, ahead: int) -> None:
        set_up(job.device, job.threads)
        self.worker = job.worker(loading(job, loader_cpus))
        self.info = replica_info(job)
        self.watched = WatchedReplica(job.run.id, asdict(self.info))

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return self.info

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Do a shard and publish it."""
        with self.watched.at_work(shard, "look into"):
            return self.watched.written(self.worker.publish(shard, {}))

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Do a shard without the images that crashed and publish it."""
        with self.watched.at_work(shard, "look into carefully"):
            return self.watched.written(self.worker.publish(shard, crashed))

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Work on some images of a shard, for no other end than to see whether they kill."""
        self.worker.probe(rows, crashed)

    def load_ahead(self, batches: int) -> None:
        """Nothing: a shard's images are loaded all at once."""
