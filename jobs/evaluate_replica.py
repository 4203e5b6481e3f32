"""A replica that evaluates methods: a Ray actor around EvaluateWorker, fed by loading tasks."""

from collections.abc import Mapping

from jobs.evaluate_worker import EvaluateJob, EvaluateWorker
from jobs.plan import Shard
from jobs.replica import ReplicaInfo, loading, replica_info
from jobs.worker import ShardReport


class EvaluateReplica:
    """Evaluates shards one at a time; the pool calls it as it calls a Replica."""

    def __init__(self, job: EvaluateJob, loader_cpus: float, ahead: int) -> None:
        self.worker = EvaluateWorker(job, loading(job, loader_cpus))
        self.weights_digest = job.model.digest()

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return replica_info(self.weights_digest)

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Evaluate and publish a shard."""
        return self.worker.evaluate_shard(shard, {})

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Evaluate and publish a shard without the images that crashed."""
        return self.worker.evaluate_shard(shard, crashed)

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Evaluate some images of a shard, for no other end than to see whether they kill."""
        self.worker.part(rows, crashed)
