"""A replica: a Ray actor around ExplainWorker, and the loading tasks that keep it fed."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import pyarrow as pa
import ray
import torch

from jobs.crashes import positions
from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.retry import explained_rows
from jobs.row_images import Load
from jobs.watched_replica import WatchedReplica
from jobs.worker import ExplainWorker, Job, ShardReport, device_name
from storage.columns import IN_PARQUET

AHEAD_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ReplicaInfo:
    """Where a replica runs and what it holds, as it reports when it is ready."""

    node: str
    gpu_ids: Sequence[int | str]
    device: str
    weights_digest: str
    replica: str = ""


class Explains(Protocol):
    """What the pool calls: an actor that does whatever a shard needs and publishes it."""

    def ready(self) -> ReplicaInfo: ...
    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport: ...
    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport: ...
    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None: ...
    def load_ahead(self, batches: int) -> None: ...


def replica_info(job: Job) -> ReplicaInfo:
    """Of the replica that this process is."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    replica = context.get_actor_id() or ""
    device = device_name(torch.device(job.device))
    return ReplicaInfo(context.get_node_id(), gpus, device, job.model.digest(), replica)


def loading(job: Job, loader_cpus: float) -> Load:
    """Loads tables of manifest rows by tasks on any CPU, all at once, and gives them in order."""
    load = ray.remote(num_cpus=loader_cpus, scheduling_strategy="SPREAD")(load_batch)

    def batches(tables: Sequence[pa.Table]) -> Iterator[Batch]:
        given = (job.reading, job.model.preprocessing)
        yield from ray.get([load.remote(table, *given) for table in tables])

    return batches


class Replica:
    """Explains shards one at a time; the next one's images load while this one computes."""

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        self.worker = ExplainWorker(job)
        self.feed = Feed(job, loader_cpus, ahead)
        self.info = replica_info(job)
        self.watched = WatchedReplica(job.run.id, asdict(self.info))

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return self.info

    def load_ahead(self, batches: int) -> None:
        """Keep so many batches loading from now on."""
        self.feed.ahead = batches

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Explain and publish `shard`; `upcoming` is likely this replica's next."""
        with self.watched.at_work(shard, "explain"):
            rows = self.feed.rows(shard)
            batches = self.watched.batches(self.feed.batches(shard, upcoming))
            return self.watched.written(self.worker.explain_shard(shard, rows, batches))

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Explain and publish a shard that killed, without the rows of `crashed`.

        Whoever comes after a kill finds the rows that were in hand in the run's breadcrumb.
        """
        run = self.worker.job.run
        with self.watched.at_work(shard, "explain carefully"):
            rows = self.feed.rows(shard)
            batches = self.feed.one_by_one(shard, crashed, run.leave_breadcrumb)
            report = self.worker.explain_shard(shard, rows, self.watched.batches(batches))
            run.sweep_breadcrumb(shard.index)
            return self.watched.written(report)

    def retry(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Explain a committed shard's failed images again, carefully."""
        run = self.worker.job.run
        with self.watched.at_work(shard, "retry"):
            part = run.read_part(shard.index)
            skipped = dict.fromkeys(explained_rows(part), "explained before") | dict(crashed)
            batches = self.feed.one_by_one(shard, skipped, run.leave_breadcrumb)
            report = self.worker.retry_shard(shard, part, self.feed.rows(shard), batches)
            run.sweep_breadcrumb(shard.index)
            return self.watched.written(report)

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Explain some rows of a shard, for no other end than to see whether they kill."""
        with self.watched.at_work(rows, "probe"):
            batches = self.feed.one_by_one(rows, crashed, lambda *_: None)
            self.worker.explain_rows(rows, self.feed.rows(rows), batches)


@dataclass(frozen=True)
class _Loading:
    shard: Shard
    run: range
    batch: "ray.ObjectRef[Batch]"


class Feed:
    """Keeps up to `ahead` batches loading as Ray tasks on any CPU, across the border of shards.

    A batch's crops travel as uint8 in the object store, and what is loaded ahead is bounded in
    bytes too. The tasks belong to the replica: they end with it.
    """

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        self.job = job
        self.ahead = ahead
        height, width = job.model.preprocessing.input_size
        self.rows_ahead = max(1, AHEAD_BYTES // (3 * height * width))
        self.load = ray.remote(num_cpus=loader_cpus, scheduling_strategy="SPREAD")(load_batch)
        self.loading: deque[_Loading] = deque()
        self.known_rows: dict[Shard, pa.Table] = {}

    def rows(self, shard: Shard) -> pa.Table:
        """The shard's manifest rows, read once."""
        if shard not in self.known_rows:
            self.known_rows[shard] = self.job.rows.read(shard.start, shard.stop)
        return self.known_rows[shard]

    def batches(self, shard: Shard, upcoming: Shard | None) -> Iterator[Batch]:
        """The shard's batches in order, with `upcoming`'s first ones loading behind them."""
        self._keep_only(shard, upcoming)
        runs = self._runs(shard)
        wanted = deque((shard, run) for run in runs[len(self.loading) :])
        if upcoming is not None:
            wanted.extend((upcoming, run) for run in self._runs(upcoming))
        for _ in runs:
            self._fill(wanted)
            batch = ray.get(self.loading.popleft().batch)
            # The place that this batch leaves is taken before the caller computes on it.
            self._fill(wanted)
            yield batch

    def one_by_one(
        self, shard: Shard, skipped: Mapping[int, str], tell: Callable[[int, int, int], None]
    ) -> Iterator[Batch]:
        """The shard's batches, each loaded when it is asked for and tried once.

        Rows of `skipped` are not touched. `tell` is told beforehand the shard's index and which
        rows are in hand from now on: to a GPU one batch is copied while another is computed.
        """
        self._forget()
        self._keep_only(shard, None)
        load = self.load.options(max_retries=0)
        computed = shard.start
        for run in self._runs(shard):
            stop = shard.start + run.stop
            tell(shard.index, computed, stop)
            computed = stop if self.job.device == "cpu" else shard.start + run.start
            rows = self.rows(shard).take(pa.array(run))
            untouched = positions(skipped, shard.start, run)
            given = (rows, self.job.reading, self.job.model.preprocessing, untouched)
            yield load_batch(*given) if len(untouched) == len(run) else ray.get(load.remote(*given))

    def _runs(self, shard: Shard) -> list[range]:
        return loading_runs(self.rows(shard), self.job.batch_size, self.rows_ahead // 4)

    def _fill(self, wanted: deque[tuple[Shard, range]]) -> None:
        while wanted and len(self.loading) < self.ahead:
            rows = sum(len(item.run) for item in self.loading)
            if rows and rows + len(wanted[0][1]) > self.rows_ahead:
                return
            self._submit(*wanted.popleft())

    def _submit(self, shard: Shard, run: range) -> None:
        # Taken, not sliced: a pickled slice carries the whole table.
        rows = self.rows(shard).take(pa.array(run))
        batch = self.load.remote(rows, self.job.reading, self.job.model.preprocessing)
        self.loading.append(_Loading(shard, run, batch))

    def _keep_only(self, shard: Shard, upcoming: Shard | None) -> None:
        """Drop what was loaded for a shard that went elsewhere, or the rest of one that failed."""
        first = self.loading[0] if self.loading else None
        if first is not None and (first.shard != shard or first.run.start != 0):
            self._forget()
        self.known_rows = {s: rows for s, rows in self.known_rows.items() if s in (shard, upcoming)}

    def _forget(self) -> None:
        for item in self.loading:
            ray.cancel(item.batch)
        self.loading.clear()


def loading_runs(rows: pa.Table, size: int, most: int) -> list[range]:
    """Which of a shard's rows are loaded by one task: at most `size`, in order.

    A Parquet file's row group is read as a whole, so its images are loaded by one task too, up to
    `most` of them.
    """
    ends = [len(rows)]
    if IN_PARQUET[0] in rows.column_names:
        places = [rows.column(name).to_pylist() for name in ("uri", IN_PARQUET[0])]
        groups = list(zip(*places, strict=True))
        ends = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]] + ends
        size = max(size, most)
    starts = [0, *ends[:-1]]
    return [
        range(first, min(first + size, end))
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, end, size)
    ]
