"""Explain one shard and publish its part: a plain class that knows nothing of Ray."""

import json
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch

from explainer import Explanation, Method, Precision, Target, VitClassifier, explain
from explainer.methods import form_name, identity
from jobs.loader import Batch
from jobs.part import Chunk, RowMaker
from jobs.plan import Shard
from jobs.retry import FIRST_GENERATION, GENERATION, merged, next_generation
from jobs.transfer import Placed, on_device
from storage import schema
from storage.images import Reading
from storage.locations import Location, StorageUnavailable
from storage.parts import STATUSES, images_by_status
from storage.rows import RowSource
from storage.runs import Run
from storage.trust import is_refusal

# Where a shard's time goes: `fetch` and `decode` in loading tasks, the others in the replica.
# `first_wait`, for a replica's first batch, is start-up: loading processes start too.
STAGES = ("fetch", "decode", "first_wait", "wait", "compute", "write")

# Images whose rows are made at once: a call costs 15 ms, and a GPU keeps their scores meanwhile.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Job:
    """All that a replica needs to explain any shard of a run; it is sent to each once."""

    model: VitClassifier
    method: Method
    target: Target
    run: Run
    rows: RowSource
    reading: Reading
    batch_size: int
    precision: Precision
    device: str
    threads: int | None

    def row_of(self, _shard: Shard, place: int) -> int:
        """The manifest's row of what is in a shard's range: the same, where shards are of rows."""
        return place


@dataclass(frozen=True)
class ShardReport:
    """What the driver learns of a shard: `created` is False where its part was there already, or
    is left as it was.
    """

    shard: Shard
    created: bool
    statuses: Mapping[str, int]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Begun:
    """A shard in work, with its manifest rows: `explained` are its images, batch by batch.

    `seconds` are those spent on it so far, by stage.
    """

    shard: Shard
    rows: pa.Table
    explained: Iterable[Chunk]
    seconds: dict[str, float]


class ExplainWorker:
    """Holds one model on one device and explains shards.

    From one shard to the next it keeps only how many images fit into the device's memory at once,
    and that it has had its first batch.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = torch.device(job.device)
        job.model.vit.to(self.device)
        self.row_maker = RowMaker(job.run.id, job.model, job.target)
        self.at_once = job.batch_size
        self.fed = False

    def begin(self, shard: Shard, rows: pa.Table, batches: Iterable[Batch]) -> Begun:
        """Make ready to explain a shard's manifest `rows` from their loaded `batches`.

        Batches may differ in length. Whoever takes `explained` has the images explained.
        """
        seconds = dict.fromkeys(STAGES, 0.0)
        return Begun(shard, rows, self.explained(shard, rows, batches, seconds), seconds)

    def explain_shard(self, shard: Shard, rows: pa.Table, batches: Iterable[Batch]) -> ShardReport:
        """Explain a shard and publish its part, one after the other; raises as `publish` does."""
        return self.publish(self.begin(shard, rows, batches))

    def publish(self, begun: Begun) -> ShardReport:
        """Make the rows of a shard's images as they are explained, and publish the part.

        Raises StorageUnavailable, RuntimeError where the batches hold not as many images as there
        are rows, and torch.OutOfMemoryError where not one image fits.
        """
        table, seconds = self.table(begun), begun.seconds
        started = time.perf_counter()
        refuse_outage(table, begun.shard.rows)
        statuses = images_by_status(table)
        metadata = self._metadata(begun.shard, statuses, FIRST_GENERATION)
        created = self.job.run.publish(begun.shard.index, schema.encode_parquet(table, metadata))
        seconds["write"] += time.perf_counter() - started
        return ShardReport(begun.shard, created, statuses, seconds)

    def retry_shard(self, begun: Begun, part: pa.Table) -> ShardReport:
        """Explain the failed images of the shard's `part` again, and put a new part in its place.

        What those images that `part` explains are like in `begun` does not matter. Where nothing
        changed the part stays. Raises as `publish` does.
        """
        table, seconds = merged(part, self.table(begun)), begun.seconds
        started = time.perf_counter()
        refuse_outage(table, begun.shard.rows)
        statuses = images_by_status(table)
        changed = not table.equals(part.cast(table.schema))
        if changed:
            metadata = self._metadata(begun.shard, statuses, next_generation(part))
            self.job.run.replace_part(begun.shard.index, schema.encode_parquet(table, metadata))
        seconds["write"] += time.perf_counter() - started
        return ShardReport(begun.shard, changed, statuses, seconds)

    def table(self, begun: Begun) -> pa.Table:
        """The rows of a part, made for many batches at once: making them costs by the call."""
        tables: list[pa.Table] = []
        waiting: list[Chunk] = []
        made = done = 0
        for chunk in begun.explained:
            waiting.append(chunk)
            done += len(chunk.images)
            if done - made >= ROWS_AT_ONCE or done >= begun.shard.rows:
                started = time.perf_counter()
                rows = begun.rows.slice(made, done - made)
                tables.append(self.row_maker.rows(rows, Chunk.joined(waiting)))
                begun.seconds["write"] += time.perf_counter() - started
                waiting, made = [], done
        if done != begun.shard.rows:
            raise RuntimeError(f"{done} images were loaded for a shard of {begun.shard.rows} rows")
        return pa.concat_tables(tables)

    def explained(
        self, shard: Shard, rows: pa.Table, batches: Iterable[Batch], seconds: dict[str, float]
    ) -> Generator[Chunk]:
        """Explain a shard's batches one by one; where that takes its time is added to `seconds`."""
        done = 0
        for placed in self._timed(on_device(batches, self.device), seconds):
            batch, started = placed.batch, time.perf_counter()
            explained = self._explain(rows.slice(done, len(batch.images)), placed)
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()  # else its time shows later
            seconds["compute"] += time.perf_counter() - started
            seconds["fetch"] += batch.fetch_seconds
            seconds["decode"] += batch.decode_seconds
            yield Chunk(shard.start + done, batch.images, batch.sizes, explained)
            done += len(batch.images)

    def compute(self, crops: torch.Tensor, labels: torch.Tensor | None) -> Explanation:
        """Explain uint8 crops that are on the device; `labels` are class indices, for that target.

        Raises torch.OutOfMemoryError where they are too many at once.
        """
        return explain(
            self.job.model,
            crops,
            target=self.job.target,
            labels=labels,
            method=self.job.method,
            precision=self.job.precision,
            allow_definition=True,
        )

    def _timed(self, batches: Iterable[Placed], seconds: dict[str, float]) -> Iterator[Placed]:
        """The batches, with the time that each was waited for added to `seconds`."""
        started = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - started
            seconds["wait" if self.fed else "first_wait"] += waited
            self.fed = True
            yield batch
            started = time.perf_counter()

    def _metadata(
        self, shard: Shard, statuses: Mapping[str, int], generation: str
    ) -> dict[str, str]:
        """What may differ between parts of one run, or helps to read a part by itself."""
        return {
            "run": self.job.run.id,
            "shard": str(shard.index),
            STATUSES: json.dumps(statuses, sort_keys=True),
            GENERATION: generation,
            "device": device_name(self.device),
            "precision": self.job.precision,
            "batch_size": str(self.at_once),
            "form": form_name(self.job.method, self.job.model),
            **{key: str(value) for key, value in identity(self.job.method).items()},
        }

    def _explain(self, manifest_rows: pa.Table, placed: Placed) -> Explanation | None:
        """Explain a batch's crops, in as many goes as the device's memory asks for."""
        crops, labels = placed.crops, None
        if not len(crops):
            return None
        if self.job.target.kind == "label":
            names = manifest_rows["label"].filter([i.status == "ok" for i in placed.batch.images])
            indices = [self.job.model.class_names.index(name) for name in names.to_pylist()]
            labels = torch.tensor(indices, device=self.device)
        parts: list[Explanation] = []
        start = 0
        while start < len(crops):
            stop = start + self.at_once
            part = self._attempt(crops[start:stop], None if labels is None else labels[start:stop])
            if part is None:
                self.at_once = max(1, min(self.at_once, len(crops) - start) // 2)
            else:
                parts.append(part)
                start = stop
        return Explanation.concatenated(parts)

    def _attempt(self, crops: torch.Tensor, labels: torch.Tensor | None) -> Explanation | None:
        """Explain crops, or None where they are too many for the device's memory."""
        try:
            return self.compute(crops, labels)
        except torch.OutOfMemoryError:
            if len(crops) == 1:
                raise
        if crops.is_cuda:
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors
        return None


def refuse_outage(rows: pa.Table, images: int) -> None:
    """Where a remote store refuses or lacks most of a shard, the store is at fault, not images.

    Raises StorageUnavailable, so that no such rows are committed (design: Guarantees).
    """
    failed = rows.filter(pc.is_in(rows["status"], pa.array(["denied", "missing"])))
    remote = [
        row
        for row in failed.select(["status", "error", "uri"]).to_pylist()
        if row["uri"] and not Location(row["uri"]).is_local and not is_refusal(row["error"])
    ]
    for status, count in Counter(row["status"] for row in remote).items():
        if count > images / 2:
            example = next(row["error"] for row in remote if row["status"] == status)
            raise StorageUnavailable(
                f"{count} of a shard's {images} images are {status}, such as {example}"
            )


def device_name(device: torch.device) -> str:
    """What parts and replicas call a device: a GPU's product name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
