"""A replica that sleeps in place of fetching, decoding and explaining; all else is the job's."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from explainer import Explanation
from explainer.preprocess import Decoded
from jobs.loader import Batch
from jobs.replica import Feed, Replica, ReplicaInfo, loading_runs
from jobs.worker import ExplainWorker, Job

CLASSES = 10
# Ray's processes inherit them: seconds of sleep an image, and where replicas meet.
SECONDS, MEETING = "SALIENCY_BENCHMARK_SECONDS", "SALIENCY_BENCHMARK_MEETING"


class SleepingWorker(ExplainWorker):
    """Builds and publishes parts; its maps are noise that took a while."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.seconds_an_image = float(os.environ[SECONDS])
        self.generator = torch.Generator().manual_seed(0)

    def compute(self, crops: torch.Tensor, labels: torch.Tensor | None) -> Explanation:
        """Noise, after a sleep."""
        images = len(crops)
        time.sleep(self.seconds_an_image * images)
        logits = torch.randn(images, CLASSES, generator=self.generator)
        scores = torch.randn(images, 1, *self.job.model.grid, generator=self.generator)
        return Explanation(logits, logits.argmax(-1, keepdim=True), scores)


class EmptyFeed(Feed):
    """Gives batches that are there already, of images that were never read."""

    def batches(self, rows: pa.Table) -> Iterator[Batch]:
        """The batches of a shard's rows in order, without crops."""
        image = Decoded(
            "ok", None, None, 500, 375, "JPEG", "RGB", False, 90, (0.5, 0.4, 0.3), 0.2, 0.01
        )
        size = self.job.batch_size
        for run in loading_runs(rows, size, size):
            crops = np.empty((len(run), 3, 0, 0), dtype=np.uint8)
            yield Batch([image] * len(run), [50_000] * len(run), crops, 0.0, 0.0)


class SleepingReplica(Replica):
    """A replica as the pool knows it, which is ready when all are."""

    def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
        super().__init__(job, loader_cpus, ahead)
        self.worker = SleepingWorker(job)
        self.feed = EmptyFeed(job, loader_cpus, ahead)
        self.is_ahead = True  # the sleep stands for a GPU

    def ready(self) -> ReplicaInfo:
        """Return once the others are there too, and leave the time."""
        meeting = Path(os.environ[MEETING])
        wanted = int(meeting.name)
        meeting.joinpath(f"{os.getpid()}").touch()
        while len(list(meeting.iterdir())) < wanted:
            time.sleep(0.05)
        info = super().ready()
        meeting.with_suffix(f".{os.getpid()}").touch()
        return info
