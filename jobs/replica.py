"""A replica: a Ray actor around ExplainWorker, and the loading tasks that keep it fed."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Protocol

import pyarrow as pa
import ray
import torch

from jobs.ahead import Made
from jobs.crashes import positions
from jobs.loader import Batch, load_batch
from jobs.part import Chunk
from jobs.plan import Shard
from jobs.process import set_up
from jobs.retry import explained_rows
from jobs.row_images import Load
from jobs.watched_replica import WatchedReplica
from jobs.worker import ROWS_AT_ONCE, STAGES, Begun, ExplainWorker, Job, ShardReport, device_name
from storage.columns import IN_PARQUET
from storage.row_reader import RowReader

AHEAD_BYTES = 512 * 2**20
POLL_SECONDS = 0.002


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
    """Explains shards one at a time; the next one's images load while this one computes.

    A GPU explains images of the next one while a thread writes this one's part.
    """

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        set_up(job.device, job.threads)
        self.worker = ExplainWorker(job)
        self.rows = RowReader(job.rows)
        self.feed = Feed(job, loader_cpus, ahead)
        self.writing = ThreadPoolExecutor(1, "writing")
        self.in_work: dict[Shard, _InWork] = {}
        # Cores that explain are kept from it by what is written, and by a thread that does that.
        self.is_ahead = job.device != "cpu"
        self.info = replica_info(job)
        self.watched = WatchedReplica(job.run.id, asdict(self.info))

    def ready(self) -> ReplicaInfo:
        """Return once the model is loaded."""
        return self.info

    def load_ahead(self, batches: int) -> None:
        """Keep so many batches loading from now on."""
        self.feed.ahead = batches

    def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
        """Explain and publish `shard`; begin `upcoming`, likely this replica's next, behind it."""
        with self.watched.at_work(shard, "explain"):
            if shard not in self.in_work:
                self._abandon()
                self._begin(shard)
            if upcoming is not None:
                self._begin(upcoming)
            try:
                report = self._publish(shard)
            except BaseException:
                self._abandon()  # what is left of this shard's images would load before others
                raise
            del self.in_work[shard]
            return self.watched.written(report)

    def _publish(self, shard: Shard) -> ShardReport:
        """Explain a shard that was begun, and of the one behind it some while this is written."""
        if not self.is_ahead:
            return self.worker.publish(self.in_work[shard].begun)
        written = self.writing.submit(self.worker.publish, self.in_work[shard].begun)
        most = max(1, ROWS_AT_ONCE // self.worker.job.batch_size)
        self._explain(self.in_work[shard].explained, written, most)
        for behind, each in self.in_work.items():
            if behind != shard:
                # Not its last batch: what comes behind is known, and loads, before that is done.
                others = math.ceil(behind.rows / self.worker.job.batch_size) - 1
                self._explain(each.explained, written, min(most, others))
        return written.result()

    def _explain(self, images: Made[Chunk], written: "Future[ShardReport]", most: int) -> None:
        """Explain until there are no more, or `written` is done; `most` batches ahead of rows."""
        while not written.done():
            if len(images) >= most:
                wait([written], POLL_SECONDS)
            elif not images.make_one():
                return

    def explain_carefully(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Explain and publish a shard that killed, without the rows of `crashed`.

        Whoever comes after a kill finds the rows that were in hand in the run's breadcrumb.
        """
        run = self.worker.job.run
        with self.watched.at_work(shard, "explain carefully"):
            begun = self._one_by_one(shard, crashed, run.leave_breadcrumb)
            report = self.worker.publish(begun)
            run.sweep_breadcrumb(shard.index)
            return self.watched.written(report)

    def retry(self, shard: Shard, crashed: Mapping[int, str]) -> ShardReport:
        """Explain a committed shard's failed images again, carefully."""
        run = self.worker.job.run
        with self.watched.at_work(shard, "retry"):
            part = run.read_part(shard.index)
            skipped = dict.fromkeys(explained_rows(part), "explained before") | dict(crashed)
            begun = self._one_by_one(shard, skipped, run.leave_breadcrumb)
            report = self.worker.retry_shard(begun, part)
            run.sweep_breadcrumb(shard.index)
            return self.watched.written(report)

    def probe(self, rows: Shard, crashed: Mapping[int, str]) -> None:
        """Explain some rows of a shard, for no other end than to see whether they kill."""
        with self.watched.at_work(rows, "probe"):
            self.worker.table(self._one_by_one(rows, crashed, lambda *_: None))

    def _begin(self, shard: Shard) -> None:
        """Have the shard's images loaded, behind those of what was begun before."""
        rows, seconds = self._rows(shard), dict.fromkeys(STAGES, 0.0)
        batches = self.watched.batches(self.feed.batches(rows))
        explained = self.worker.explained(shard, rows, batches, seconds)
        made = Made(explained)
        begun = Begun(shard, rows, made if self.is_ahead else explained, seconds)
        self.in_work[shard] = _InWork(begun, made)

    def _one_by_one(
        self, shard: Shard, skipped: Mapping[int, str], tell: Callable[[int, int, int], None]
    ) -> Begun:
        """The shard, with nothing else in work; as Feed.one_by_one loads it."""
        self._abandon()
        rows = self._rows(shard)
        batches = self.watched.batches(self.feed.one_by_one(shard, rows, skipped, tell))
        return self.worker.begin(shard, rows, batches)

    def _abandon(self) -> None:
        """Leave what was begun for shards that went elsewhere."""
        self.feed.forget()
        for each in self.in_work.values():
            each.explained.close()
        self.in_work.clear()

    def _rows(self, shard: Shard) -> pa.Table:
        return self.rows.read(shard.start, shard.stop)


@dataclass(frozen=True)
class _InWork:
    """A shard that was begun, and its images as this process explains them."""

    begun: Begun
    explained: Made[Chunk]


@dataclass(frozen=True)
class _Wanted:
    """Rows to load, of the rows of a shard."""

    rows: pa.Table
    of_shard: pa.Table


@dataclass(frozen=True)
class _Loading:
    wanted: _Wanted
    batch: "ray.ObjectRef[Batch]"


class Feed:
    """Keeps up to `ahead` batches loading as Ray tasks on any CPU, across the border of shards.

    A batch's crops travel as uint8 in the object store, and what is loaded ahead is bounded in
    bytes too. The tasks belong to the replica: they end with it. With a GPU one thread asks for
    batches while another takes them.
    """

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        self.job = job
        self.ahead = ahead
        height, width = job.model.preprocessing.input_size
        self.images_ahead = max(1, AHEAD_BYTES // (3 * height * width))
        self.load = ray.remote(num_cpus=loader_cpus, scheduling_strategy="SPREAD")(load_batch)
        self.wanted: deque[_Wanted] = deque()
        self.loading: deque[_Loading] = deque()
        self.changing = threading.Lock()

    def batches(self, rows: pa.Table) -> Iterator[Batch]:
        """The batches of a shard's manifest rows in order, loaded behind all asked for before."""
        runs = self._runs(rows)
        with self.changing:
            # Taken, not sliced: a pickled slice carries the whole table.
            self.wanted.extend(_Wanted(rows.take(pa.array(run)), rows) for run in runs)
            self._fill()
        return self._loaded(rows, len(runs))

    def _loaded(self, rows: pa.Table, batches: int) -> Iterator[Batch]:
        for _ in range(batches):
            first = self.loading[0] if self.loading else None
            if first is None or first.wanted.of_shard is not rows:
                raise RuntimeError("a shard takes its images in its turn; these were forgotten")
            batch = ray.get(first.batch)
            with self.changing:
                # The place that this batch leaves is taken before the caller computes on it.
                self.loading.popleft()
                self._fill()
            yield batch

    def one_by_one(
        self,
        shard: Shard,
        rows: pa.Table,
        skipped: Mapping[int, str],
        tell: Callable[[int, int, int], None],
    ) -> Iterator[Batch]:
        """The shard's batches, each loaded when it is asked for and tried once.

        Rows of `skipped` are not touched. `tell` is told beforehand the shard's index and which
        rows are in hand from now on: to a GPU one batch is copied while another is computed.
        """
        load = self.load.options(max_retries=0)
        computed = shard.start
        for run in self._runs(rows):
            stop = shard.start + run.stop
            tell(shard.index, computed, stop)
            computed = stop if self.job.device == "cpu" else shard.start + run.start
            untouched = positions(skipped, shard.start, run)
            taken = rows.take(pa.array(run))
            given = (taken, self.job.reading, self.job.model.preprocessing, untouched)
            yield load_batch(*given) if len(untouched) == len(run) else ray.get(load.remote(*given))

    def forget(self) -> None:
        """Load nothing of what was asked for; whoever still takes its batches fails."""
        with self.changing:
            self.wanted.clear()
            for item in self.loading:
                ray.cancel(item.batch)
            self.loading.clear()

    def _runs(self, rows: pa.Table) -> list[range]:
        return loading_runs(rows, self.job.batch_size, self.images_ahead // 4)

    def _fill(self) -> None:
        """Have more loaded, as far as may be loaded ahead; called under the lock."""
        while self.wanted and len(self.loading) < self.ahead:
            images = sum(len(item.wanted.rows) for item in self.loading)
            if images and images + len(self.wanted[0].rows) > self.images_ahead:
                return
            wanted = self.wanted.popleft()
            batch = self.load.remote(wanted.rows, self.job.reading, self.job.model.preprocessing)
            self.loading.append(_Loading(wanted, batch))


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
