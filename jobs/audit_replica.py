"""A replica that audits classes: a Ray actor around AuditWorker, fed by loading tasks."""

from collections.abc import Mapping

import numpy as np

from jobs.audit_worker import AuditJob, AuditWorker
from jobs.plan import Shard
from jobs.replica import ReplicaInfo, loading, replica_info
from jobs.worker import ShardReport


class AuditReplica:
    """Audits classes one at a time; the pool calls it as it calls a Replica."""

    def __init__(self, job: AuditJob, loader_cpus: float, ahead: int) -> None:
        self.worker = AuditWorker(job, loading(job, loader_cpus))
        self.weights_digest = job.model.digest()

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return replica_info(self.weights_digest)

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Audit and publish the class of a shard."""
        return self.worker.audit_class(shard, {})

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Audit and publish a class without the images that crashed."""
        return self.worker.audit_class(shard, crashed)

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Audit some images of a class, for no other end than to see whether they kill."""
        loaded = self.worker.load_class(rows, crashed)
        nobody = self.worker.job.recipients.only(np.arange(0))
        self.worker.examine(loaded.sample, nobody)
