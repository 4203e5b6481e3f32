"""Evaluate methods on some images and publish the numbers: a plain class that knows no Ray."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from explainer import Method, VitClassifier
from explainer.evaluation import STAGES, Judge
from explainer.preprocess import Preprocessing, decode_mask
from explainer.sanity import Stage, randomised
from jobs.evaluate_plan import Sample
from jobs.plan import Shard
from jobs.row_images import Load, RerunJob, RowImages
from jobs.worker import ShardReport
from storage import evaluations
from storage.boxes import Boxes
from storage.evaluations import Evaluation, Part


@dataclass(frozen=True)
class EvaluateJob(RerunJob):
    """All that a replica needs to evaluate any shard.

    A shard of this job is a range of the `sample` of the finished run's images. `methods` are by
    the names under which they are told.
    """

    sample: Sample
    methods: Mapping[str, Method]
    steps: int
    boxes: Boxes | None
    seed: int

    def row_of(self, _shard: Shard, place: int) -> int:
        """The manifest's row of a place in the sample."""
        return int(self.sample.rows[place])

    def worker(self, load: Load) -> "EvaluateWorker":
        """What judges its images."""
        return EvaluateWorker(self, load)


class EvaluateWorker:
    """Holds one model on one device, and what its maps are held against."""

    def __init__(self, job: EvaluateJob, load: Load) -> None:
        self.job, self.images = job, RowImages(job, job.shards, load)
        self.evaluation = Evaluation(job.run)
        self.device = torch.device(job.device)
        job.model.vit.to(self.device)
        self.at_once = job.batch_size
        self.warm = False

    def publish(self, shard: Shard, skipped: Mapping[int, str]) -> ShardReport:
        """Judge every method on a shard's images, without those that are `skipped`, and publish.

        Images that cannot be loaded now are left out, and the part says why. Raises
        StorageUnavailable where these are most, and torch.OutOfMemoryError where one is too much.
        """
        started = time.perf_counter()
        part = self.part(shard, skipped)
        created = self.evaluation.publish(shard.index, part)
        left_out = len(part.left_out)
        statuses = {"ok": shard.rows - left_out, "left out": left_out}
        return ShardReport(shard, created, statuses, {"compute": time.perf_counter() - started})

    def probe(self, shard: Shard, skipped: Mapping[int, str]) -> None:
        """Judge some images, for no part."""
        self.part(shard, skipped)

    def part(self, shard: Shard, skipped: Mapping[int, str]) -> Part:
        """What `publish` publishes."""
        wanted = np.array([i for i in range(shard.start, shard.stop) if i not in skipped], np.int64)
        loaded = self.images.loaded(self.job.sample.rows[wanted])
        loaded.refuse_loss("")
        crashed = {self.job.row_of(shard, i): f"crashed: {why}" for i, why in skipped.items()}
        left_out = {**crashed, **loaded.left_out}
        return Part(self._numbers(wanted[loaded.places], loaded.crops), left_out)

    def _numbers(self, chosen: NDArray[np.int64], crops: Tensor) -> pa.Table:
        """Each image's numbers, in as many goes as the memory asks for; `chosen` are places in the
        sample."""
        tables = [evaluations.numbers().empty_table()]
        start = 0
        while start < len(chosen):
            part = slice(start, start + self.at_once)
            table = self._attempt(chosen[part], crops[part])
            if table is None:
                self.at_once = max(1, min(self.at_once, len(chosen) - start) // 2)
            else:
                tables.append(table)
                start += self.at_once
        return pa.concat_tables(tables)

    def _attempt(self, chosen: NDArray[np.int64], crops: Tensor) -> pa.Table | None:
        """Numbers of images, or None where they are too many for the device's memory."""
        try:
            return self._judged(chosen, crops)
        except torch.OutOfMemoryError:
            if len(chosen) == 1:
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # outside the handler, whose traceback holds the tensors
        return None

    def _judged(self, chosen: NDArray[np.int64], crops: Tensor) -> pa.Table:
        sample = self.job.sample.only(chosen)
        judge = Judge(
            self.job.model,
            crops.to(self.device),
            torch.from_numpy(sample.targets).to(self.device),
            self.job.steps,
            self._randomised,
            self._cover(sample),
        )
        if not self.warm:  # what a first call of each costs besides is no method's cost
            for method in self.job.methods.values():
                judge.maps(method, judge.crops)
            self.warm = True
        tables = [
            _table(sample, name, metric, values.numpy())
            for name, method in self.job.methods.items()
            for metric, values in judge.metrics(method).items()
        ]
        return pa.concat_tables(tables)

    @cached_property
    def _randomised(self) -> dict[Stage, VitClassifier]:
        return {stage: randomised(self.job.model, stage, self.job.seed) for stage in STAGES}

    def _cover(self, sample: Sample) -> Tensor | None:
        """How much of each cell lies in the images' boxes or masks."""
        if self.job.boxes is None:
            return None
        model, boxes = self.job.model, self.job.boxes
        inside = [
            covered(model.preprocessing, boxes, name, size)
            for name, size in zip(sample.names, sample.sizes, strict=True)
        ]
        pixels = torch.from_numpy(np.stack(inside)).float()[:, None]
        return adaptive_avg_pool2d(pixels, model.grid)[:, 0].to(self.device)


def covered(
    preprocessing: Preprocessing, boxes: Boxes, name: str, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which pixels of an image's crop lie in its boxes or its mask. Raises ValueError for a mask
    that is none of an image of that `size` (height, width)."""
    if name in boxes.masks:
        return preprocessing.cropped_mask(decode_mask(boxes.masks[name], *size))
    return preprocessing.covered(boxes.of.get(name, ()), *size)


def _table(sample: Sample, method: str, metric: str, values: NDArray[np.float64]) -> pa.Table:
    columns = {
        "row": sample.rows,
        "image_id": sample.names,
        "target": sample.targets.astype(np.int32),
        "method": [method] * len(values),
        "metric": [metric] * len(values),
        "value": pa.array(values, from_pandas=True),  # NaN is null
    }
    return pa.table(columns, schema=evaluations.numbers())
