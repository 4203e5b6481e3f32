"""A replica that evaluates methods: a Ray actor around EvaluateWorker, fed by loading tasks."""

from collections.abc import Mapping

from jobs.evaluate_worker import EvaluateJob, EvaluateWorker
from jobs.plan import Shard
from jobs.replica import ReplicaInfo, loading, replica_info
from jobs.watched_replica import WatchedReplica
from jobs.worker import ShardReport


class EvaluateReplica:
    """Evaluates shards one at a time; the pool calls it as it calls a Replica."""

    def __init__(self, job: EvaluateJob, loader_cpus: float, ahead: int) -> None:
        self.worker = EvaluateWorker(job, loading(job, loader_cpus))
        self.info = replica_info(job.model.digest())
        self.watched = WatchedReplica(job.run.id, self.info.replica, self.info.node)

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return self.info

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Evaluate and publish a shard."""
        with self.watched.at_work(shard, "evaluate"):
            return self.watched.written(self.worker.evaluate_shard(shard, {}))

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Evaluate and publish a shard without the images that crashed."""
        with self.watched.at_work(shard, "evaluate carefully"):
            return self.watched.written(self.worker.evaluate_shard(shard, crashed))

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Evaluate some images of a shard, for no other end than to see whether they kill."""
        self.worker.part(rows, crashed)
