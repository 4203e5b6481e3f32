"""A replica that audits classes: a Ray actor around AuditWorker, fed by loading tasks."""

from collections.abc import Mapping

import numpy as np

from jobs.audit_worker import AuditJob, AuditWorker
from jobs.plan import Shard
from jobs.replica import ReplicaInfo, loading, replica_info
from jobs.watched_replica import WatchedReplica
from jobs.worker import ShardReport


class AuditReplica:
    """Audits classes one at a time; the pool calls it as it calls a Replica."""

    def __init__(self, job: AuditJob, loader_cpus: float, ahead: int) -> None:
        self.worker = AuditWorker(job, loading(job, loader_cpus))
        self.info = replica_info(job.model.digest())
        self.watched = WatchedReplica(job.run.id, self.info.replica, self.info.node)

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return self.info

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Audit and publish the class of a shard."""
        with self.watched.at_work(shard, "audit"):
            return self.watched.written(self.worker.audit_class(shard, {}))

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Audit and publish a class without the images that crashed."""
        with self.watched.at_work(shard, "audit carefully"):
            return self.watched.written(self.worker.audit_class(shard, crashed))

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Audit some images of a class, for no other end than to see whether they kill."""
        loaded = self.worker.load_class(rows, crashed)
        nobody = self.worker.job.recipients.only(np.arange(0))
        self.worker.examine(loaded.sample, nobody)
