"""Images of any rows of a finished run's manifest, for jobs that look at some of them again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.loader import Batch
from jobs.plan import Shard
from jobs.worker import Job, ShardReport
from storage.locations import StorageUnavailable
from storage.row_reader import RowReader
from storage.runs import Run

Load = Callable[[Sequence[pa.Table]], Iterator[Batch]]


@dataclass(frozen=True)
class LoadedRows:
    """Crops of the rows that could be loaded, their places among those asked for, and by row why
    others could not."""

    crops: Tensor
    places: NDArray[np.int64]
    left_out: Mapping[int, str]

    def refuse_loss(self, what: str) -> None:
        """Raise StorageUnavailable where most could not: then the store is at fault, or the images
        are no longer those of the run."""
        lost, loaded = len(self.left_out), len(self.places)
        if lost > loaded:
            raise StorageUnavailable(
                f"{lost} of {lost + loaded} images{what} cannot be loaded, which the run explained"
            )


class Reruns(Protocol):
    """A worker that does shards of a job about a finished run; `skipped` are images that crash."""

    def publish(self, shard: Shard, skipped: Mapping[int, str]) -> ShardReport: ...
    def probe(self, shard: Shard, skipped: Mapping[int, str]) -> None: ...


@dataclass(frozen=True)
class RerunJob(Job):
    """A job about the `finished` run, whose shards are `shards`; `run` is the job's own."""

    finished: Run
    shards: Sequence[Shard]

    def worker(self, load: Load) -> Reruns:
        """What does the job's shards, in this process."""
        raise NotImplementedError


@dataclass(frozen=True)
class RowImages:
    """Loads images by their rows; `shards` are those of the run, `load` loads manifest rows."""

    job: Job
    shards: Sequence[Shard]
    load: Load

    def loaded(self, rows: NDArray[np.int64]) -> LoadedRows:
        """The images of rows, which are rising."""
        batches = list(self.load(self._batches(rows)))
        images = [image for batch in batches for image in batch.images]
        ok = np.array([image.status == "ok" for image in images], bool)
        height, width = self.job.model.preprocessing.input_size
        nothing = np.empty((0, 3, height, width), np.uint8)
        crops = np.concatenate([nothing, *(batch.crops for batch in batches)])
        lost = {
            int(row): f"{image.status}: {image.error}"
            for row, image in zip(rows, images, strict=True)
            if image.status != "ok"
        }
        return LoadedRows(torch.from_numpy(crops), np.flatnonzero(ok), lost)

    def by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[Shard, NDArray[np.int64]]]:
        """The shards of the run that rows lie in, and which of the rows those are."""
        starts = [shard.start for shard in self.shards]
        of = np.searchsorted(starts, rows, side="right") - 1
        for index in np.unique(of):
            yield self.shards[index], rows[of == index]

    def _batches(self, rows: NDArray[np.int64]) -> list[pa.Table]:
        if not len(rows):
            return []
        table, size = pa.concat_tables(self._manifest(rows)), self.job.batch_size
        # Taken, not sliced: a pickled slice carries the whole table.
        places = np.array_split(np.arange(len(table)), -(-len(table) // size))
        return [table.take(pa.array(place)) for place in places]

    def _manifest(self, rows: NDArray[np.int64]) -> Iterator[pa.Table]:
        with closing(RowReader(self.job.rows)) as reader:
            for shard, inside in self.by_shard(rows):
                table = reader.read(shard.start, shard.stop)
                yield table.take(pa.array(inside - shard.start))
