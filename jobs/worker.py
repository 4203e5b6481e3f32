"""Explain one shard and publish its part: a plain class that knows nothing of Ray."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from explainer import Explanation, Precision, ReciproCam, Target, VitClassifier, explain
from explainer.maps import statistics
from explainer.preprocess import Decoded
from jobs.loader import Batch
from jobs.plan import Shard
from storage import schema
from storage.images import Reading
from storage.locations import Location, StorageUnavailable
from storage.rows import RowSource
from storage.runs import Run


@dataclass(frozen=True)
class Job:
    """All that a replica needs to explain any shard of a run; it is sent to each once."""

    model: VitClassifier
    method: ReciproCam
    target: Target
    run: Run
    rows: RowSource
    reading: Reading
    batch_size: int
    precision: Precision
    device: str
    threads: int | None


@dataclass(frozen=True)
class ShardReport:
    """What the driver learns of a shard: `created` is False where its part was there already."""

    shard: Shard
    created: bool
    statuses: Mapping[str, int]
    seconds: Mapping[str, float]


class ExplainWorker:
    """Holds one model on one device and explains shards.

    From one shard to the next it keeps only how many images fit into the device's memory at once.
    """

    def __init__(self, job: Job) -> None:
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self.job = job
        self.device = torch.device(job.device)
        job.model.vit.to(self.device)
        self.schema = schema.explanations(job.model.grid)
        self.at_once = job.batch_size

    def explain_shard(self, shard: Shard, rows: pa.Table, batches: Iterable[Batch]) -> ShardReport:
        """Explain the shard's manifest `rows` from their loaded `batches` and publish the part."""
        seconds = dict.fromkeys(("fetch", "decode", "wait", "compute", "write"), 0.0)
        tables = []
        statuses: Counter[str] = Counter()
        done = 0
        for batch in _timed(batches, seconds):
            started = time.perf_counter()
            manifest_rows = rows.slice(done, len(batch.images)).to_pylist()
            tables.append(self._explain_batch(shard.start + done, manifest_rows, batch))
            done += len(batch.images)
            seconds["compute"] += time.perf_counter() - started
            seconds["fetch"] += batch.fetch_seconds
            seconds["decode"] += batch.decode_seconds
            statuses.update(image.status for image in batch.images)
        if done != shard.rows:
            raise RuntimeError(f"{done} images were loaded for a shard of {shard.rows} rows")
        self._refuse_outage(tables)
        started = time.perf_counter()
        part = schema.encode_parquet(pa.concat_tables(tables), self._metadata(shard))
        created = self.job.run.publish(shard.index, part)
        seconds["write"] = time.perf_counter() - started
        return ShardReport(shard, created, dict(statuses), seconds)

    def _refuse_outage(self, tables: list[pa.Table]) -> None:
        """Where a remote store refuses or lacks most of a shard, the store is at fault, not images.

        Raises StorageUnavailable, so that no such rows are committed (design: Guarantees).
        """
        rows = [row for t in tables for row in t.select(["status", "error", "uri"]).to_pylist()]
        refused = [
            row
            for row in rows
            if row["status"] in ("denied", "missing")
            and row["uri"]
            and not Location(row["uri"]).is_local
        ]
        for status, count in Counter(row["status"] for row in refused).items():
            if count > len(rows) / 2:
                example = next(row["error"] for row in refused if row["status"] == status)
                raise StorageUnavailable(
                    f"{count} of a shard's {len(rows)} images are {status}, such as {example}"
                )

    def _metadata(self, shard: Shard) -> dict[str, str]:
        """What may differ between parts of one run, or helps to read a part by itself."""
        return {
            "run": self.job.run.id,
            "shard": str(shard.index),
            "device": _device_name(self.device),
            "precision": self.job.precision,
            "batch_size": str(self.at_once),
            "form": self.job.method.form(self.job.model).name,
            **{key: str(value) for key, value in asdict(self.job.method).items()},
        }

    def _explain_batch(
        self, first_row: int, manifest_rows: list[dict[str, Any]], batch: Batch
    ) -> pa.Table:
        """The rows of the explanations table that belong to a batch of manifest rows."""
        common = [
            self._common(first_row + i, manifest_row, image, size)
            for i, (manifest_row, image, size) in enumerate(
                zip(manifest_rows, batch.images, batch.sizes, strict=True)
            )
        ]
        explained = [row for row in common if row["status"] == "ok"]
        if not explained:
            return self._table(common, np.empty((0, self._cells), dtype=np.float16))
        explanation = self._explain(batch, explained)
        saliency = explanation.saliency.cpu()
        targets = iter(self._target_rows(explanation, saliency))
        rows = []
        for row in common:
            rows += [row | extra for extra in next(targets)] if row["status"] == "ok" else [row]
        return self._table(rows, saliency.flatten(0, 1).flatten(1).half().numpy())

    def _explain(self, batch: Batch, explained: list[dict[str, Any]]) -> Explanation:
        # Ray hands out read-only arrays, and torch wants to own what it may write to.
        crops = torch.from_numpy(batch.crops.copy()).to(self.device)
        labels = None
        if self.job.target.kind == "label":
            labels = torch.tensor([row["label"] for row in explained], device=self.device)
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
            return explain(
                self.job.model,
                crops,
                target=self.job.target,
                labels=labels,
                method=self.job.method,
                precision=self.job.precision,
                allow_definition=True,
            )
        except torch.OutOfMemoryError:
            if len(crops) == 1:
                raise
        if crops.is_cuda:
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors
        return None

    def _common(
        self, row: int, manifest_row: dict[str, Any], image: Decoded, size: int | None
    ) -> dict[str, Any]:
        """The columns that an image's rows share, whatever became of it."""
        label = manifest_row["label"]
        red, green, blue = image.mean or (None, None, None)
        return {
            "run": self.job.run.id,
            "row": row,
            "image_id": manifest_row["image_id"],
            "uri": manifest_row["uri"],
            "label": self.job.model.class_names.index(label),
            "label_name": None if label is None else str(label),
            "status": image.status,
            "error": image.error,
            "width": image.width,
            "height": image.height,
            "format": image.format,
            "mode": image.mode,
            "bytes": size,
            "has_exif": image.has_exif,
            "jpeg_quality": image.jpeg_quality,
            "mean_r": red,
            "mean_g": green,
            "mean_b": blue,
            "contrast": image.contrast,
            "sharpness": image.sharpness,
        }

    def _target_rows(
        self, explanation: Explanation, saliency: torch.Tensor
    ) -> list[list[dict[str, Any]]]:
        """For each explained image, the columns of each of its targets."""
        probabilities = explanation.logits.softmax(-1)
        # Of the logits, like the targets: probabilities that saturate can tie.
        predicted = explanation.logits.argmax(-1)
        described = statistics(saliency)
        names = self.job.model.class_names.names
        columns = {
            "target": explanation.targets,
            "target_probability": probabilities.gather(-1, explanation.targets),
            "score_min": explanation.scores.amin((-2, -1)),
            "score_max": explanation.scores.amax((-2, -1)),
            "peak_row": described.peak_row,
            "peak_col": described.peak_column,
            "border_mass": described.border_mass,
            "entropy": described.entropy,
        }
        values = {name: tensor.tolist() for name, tensor in columns.items()}
        top, probability = predicted.tolist(), probabilities.amax(-1).tolist()
        return [
            [
                {name: per_image[i][rank] for name, per_image in values.items()}
                | {
                    "predicted": top[i],
                    "predicted_name": names[top[i]],
                    "probability": probability[i],
                    "target_name": names[values["target"][i][rank]],
                    "target_kind": self.job.target.kind,
                    "target_rank": rank,
                }
                for rank in range(explanation.targets.shape[1])
            ]
            for i in range(len(top))
        ]

    @property
    def _cells(self) -> int:
        return self.job.model.patches

    def _table(self, rows: list[dict[str, Any]], saliency: np.ndarray) -> pa.Table:
        """Rows as a table; the maps, in the order of the explained rows, go in without lists."""
        explained = np.array([row["status"] == "ok" for row in rows])
        values = np.zeros((len(rows), self._cells), dtype=np.float16)
        values[explained] = saliency
        maps = pa.FixedSizeListArray.from_arrays(
            pa.array(values.ravel()), self._cells, mask=pa.array(~explained)
        )
        place = self.schema.get_field_index("saliency")
        table = pa.Table.from_pylist(rows, schema=self.schema)
        return table.set_column(place, self.schema.field(place), maps)


def _timed(batches: Iterable[Batch], seconds: dict[str, float]) -> Iterator[Batch]:
    """The batches, with the time that each was waited for added to `seconds`."""
    started = time.perf_counter()
    for batch in batches:
        seconds["wait"] += time.perf_counter() - started
        yield batch
        started = time.perf_counter()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
