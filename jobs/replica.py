"""A replica: a Ray actor around ExplainWorker, and the loading tasks that keep it fed."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray

from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.worker import ExplainWorker, Job, ShardReport
from storage.manifests import read_rows

AHEAD_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ReplicaInfo:
    """Where a replica runs and what it holds, as it reports when it is ready."""

    node: str
    gpu_ids: Sequence[int | str]
    weights_digest: str


class Replica:
    """Explains shards one at a time; the next one's images load while this one computes."""

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        self.worker = ExplainWorker(job)
        self.feed = Feed(job, loader_cpus, ahead)
        self.weights_digest = job.model.digest()

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return ReplicaInfo(context.get_node_id(), gpus, self.weights_digest)

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Explain and publish `shard`; `upcoming` is likely this replica's next."""
        rows = self.feed.rows(shard)
        return self.worker.explain_shard(shard, rows, self.feed.batches(shard, upcoming))


@dataclass(frozen=True)
class _Loading:
    shard: Shard
    run: range
    batch: "ray.ObjectRef[Batch]"


class Feed:
    """Keeps up to `ahead` batches loading as Ray tasks on any CPU, across the border of shards.

    A batch's crops travel as uint8 in the object store, so what is loaded ahead is bounded in
    bytes too. The tasks belong to the replica: they end with it.
    """

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        self.job = job
        height, width = job.model.preprocessing.input_size
        batch_bytes = 3 * height * width * job.batch_size
        self.ahead = max(1, min(ahead, AHEAD_BYTES // batch_bytes))
        self.load = ray.remote(num_cpus=loader_cpus, scheduling_strategy="SPREAD")(load_batch)
        self.loading: deque[_Loading] = deque()
        self.known_rows: dict[int, pa.Table] = {}

    def rows(self, shard: Shard) -> pa.Table:
        """The shard's manifest rows, read once."""
        if shard.index not in self.known_rows:
            rows = read_rows(self.job.run.manifest, shard.start, shard.stop)
            self.known_rows[shard.index] = rows
        return self.known_rows[shard.index]

    def batches(self, shard: Shard, upcoming: Shard | None) -> Iterator[Batch]:
        """The shard's batches in order, with `upcoming`'s first ones loading behind them."""
        self._keep_only(shard, upcoming)
        runs = shard.batches(self.job.batch_size)
        wanted = deque((shard, run) for run in runs[len(self.loading) :])
        if upcoming is not None:
            wanted.extend((upcoming, run) for run in upcoming.batches(self.job.batch_size))
        for _ in runs:
            self._fill(wanted)
            batch = ray.get(self.loading.popleft().batch)
            # The place that this batch leaves is taken before the caller computes on it.
            self._fill(wanted)
            yield batch

    def _fill(self, wanted: deque[tuple[Shard, range]]) -> None:
        while wanted and len(self.loading) < self.ahead:
            self._submit(*wanted.popleft())

    def _submit(self, shard: Shard, run: range) -> None:
        uris = self.rows(shard).column("uri").slice(run.start, len(run)).to_pylist()
        preprocessing = self.job.model.preprocessing
        batch = self.load.remote(uris, self.job.input_options, preprocessing)
        self.loading.append(_Loading(shard, run, batch))

    def _keep_only(self, shard: Shard, upcoming: Shard | None) -> None:
        """Drop what was loaded for a shard that went elsewhere, or the rest of one that failed."""
        first = self.loading[0] if self.loading else None
        if first is not None and (first.shard != shard or first.run.start != 0):
            for item in self.loading:
                ray.cancel(item.batch)
            self.loading.clear()
        indices = {shard.index} | ({upcoming.index} if upcoming else set())
        self.known_rows = {i: rows for i, rows in self.known_rows.items() if i in indices}
