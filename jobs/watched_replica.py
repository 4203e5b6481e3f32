"""What a replica tells of its work, in metrics and in its log."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jobs import logs, metrics
from jobs.loader import Batch
from jobs.plan import Shard
from jobs.worker import ShardReport


class WatchedReplica:
    """A replica of a run, by the ids that Ray's own tools show for its actor and its node.

    Its process logs to stderr, which Ray keeps in a file of the node.
    """

    def __init__(self, run: str, info: Mapping[str, Any]) -> None:
        """`info` is what the replica reports when it is ready."""
        logs.to_stderr()
        self.tags = {"run": run, "replica": info["replica"]}
        self.said: dict[str, Any] = {**self.tags, "node": info["node"]}
        logs.log("replica ready", {"run": run, **info})

    @contextmanager
    def at_work(self, shard: Shard, how: str) -> Iterator[None]:
        """Log that a shard, or some rows of it, are begun, and what stops that, if anything."""
        said = self.said | {"shard": shard.index, "rows": [shard.start, shard.stop], "how": how}
        logs.log("shard begun", said)
        started = time.monotonic()
        try:
            yield
        except Exception as error:  # whatever it is: it is logged, and goes on
            cause = {"error": type(error).__name__, "seconds": time.monotonic() - started}
            logs.log("shard failed", said | cause, logging.ERROR)
            raise

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; how large each is goes into the metrics."""
        for batch in batches:
            metrics.observe("batch_images", len(batch.images), **self.tags)
            yield batch

    def written(self, report: ShardReport) -> ShardReport:
        """The same report; what it says goes into metrics and log."""
        metrics.add("replica_images", sum(report.statuses.values()), **self.tags)
        for stage, seconds in report.seconds.items():
            metrics.add("replica_stage_seconds", seconds, stage=stage, **self.tags)
        logs.log("shard written", self.said | reported(report))
        return report


def reported(report: ShardReport) -> dict[str, Any]:
    """What the log says of a shard that is written."""
    seconds = {stage: round(value, 3) for stage, value in report.seconds.items()}
    return {
        "shard": report.shard.index,
        "created": report.created,
        "statuses": dict(report.statuses),
        "seconds": seconds,
    }
