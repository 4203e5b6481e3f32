"""What the driver tells of its replicas and shards, in metrics and in its log."""

import logging
import time
from types import TracebackType

from jobs import logs, metrics
from jobs.pool import Pool
from jobs.shard_queue import ShardFailure
from jobs.watched_replica import reported
from jobs.worker import ShardReport

# Metrics are scraped every few seconds, and hundreds of replicas report several times in one.
SHOW_SECONDS = 1.0


class WatchedPool:
    """A pool at work on a run. Use as a context manager: at its end no replica is ready."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.run = pool, pool.job.run.id
        self.images = self.done = self.failed = self.lost = self.retried = 0
        self.shown = -SHOW_SECONDS

    def __enter__(self) -> "WatchedPool":
        wanted = self.pool.resources.replicas
        logs.log("replicas wanted", {"run": self.run, "replicas": wanted})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._count_losses()
        self._put(queued=0, running=0, ready=0, wanted=0)
        metrics.put("images_per_second", 0.0, run=self.run)
        said = {"shards_done": self.done, "shards_undone": self.failed, "images": self.images}
        logs.log("replicas ended", {"run": self.run, **said})

    def written(self, report: ShardReport) -> None:
        """A shard is written."""
        self.done += 1
        self.images += sum(report.statuses.values())
        for status, count in report.statuses.items():
            metrics.add("images", count, run=self.run, status=status)
        for stage, seconds in report.seconds.items():
            metrics.add("stage_seconds", seconds, run=self.run, stage=stage)
        logs.log("shard written", {"run": self.run, **reported(report)})

    def undone(self, failure: ShardFailure) -> None:
        """A shard is left undone."""
        self.failed += 1
        said = {"run": self.run, "shard": failure.shard.index, "error": failure.error}
        logs.log("shard left undone", said, logging.ERROR)

    def tell(self, news: str) -> None:
        """Something that the user is told too."""
        logs.log("news", {"run": self.run, "text": news}, logging.WARNING)

    def show(self) -> None:
        """How far all is now, where that was not told a moment ago."""
        pool = self.pool
        if time.monotonic() - self.shown < SHOW_SECONDS:
            return
        self.shown = time.monotonic()
        self._put(pool.queued, pool.running, pool.live, pool.resources.replicas)
        self._count_losses()
        if pool.first_ready is not None and self.images:
            rate = self.images / (time.monotonic() - pool.first_ready)
            metrics.put("images_per_second", rate, run=self.run)

    def _count_losses(self) -> None:
        pool = self.pool
        metrics.add("replicas_lost", pool.lost - self.lost, run=self.run)
        metrics.add("shards_retried", pool.retried - self.retried, run=self.run)
        self.lost, self.retried = pool.lost, pool.retried

    def _put(self, queued: int, running: int, ready: int, wanted: int) -> None:
        shards = {"queued": queued, "running": running, "done": self.done, "undone": self.failed}
        for state, count in shards.items():
            metrics.put("shards", count, run=self.run, state=state)
        for state, count in (("ready", ready), ("wanted", wanted)):
            metrics.put("replicas", count, run=self.run, state=state)
