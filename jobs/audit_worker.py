"""Audit one class and publish the evidence on it: a plain class that knows nothing of Ray."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from explainer.audit.examination import Examination, examine
from explainer.audit.interventions import Images, Laboratory
from explainer.audit.sample import ClassSample
from explainer.audit.statistics import ClassStatistics, class_statistics
from jobs.audit_pictures import png
from jobs.audit_plan import ClassImages, Recipients
from jobs.plan import Shard
from jobs.row_images import Load, RerunJob, RowImages
from jobs.worker import ShardReport
from storage import schema
from storage.audits import Audit

COLUMNS_OF_PROPERTIES = (
    "width", "height", "bytes", "has_exif", "jpeg_quality",
    "mean_r", "mean_g", "mean_b", "contrast", "sharpness",
)  # fmt: skip
LEAST_MAPS = 2
PROPERTIES = (*COLUMNS_OF_PROPERTIES, "aspect")


@dataclass(frozen=True)
class AuditJob(RerunJob):
    """All that a replica needs to audit any class of a run.

    A shard of this job is a class: its index says which of `classes`, its rows which of the images.
    """

    classes: Sequence[ClassImages]
    recipients: Recipients
    seed: int

    def row_of(self, shard: Shard, place: int) -> int:
        """The manifest's row of an image of a class."""
        return int(self.classes[shard.index].rows[place])

    def worker(self, load: Load) -> "AuditWorker":
        """What audits its classes."""
        return AuditWorker(self, load)


@dataclass(frozen=True)
class Explained:
    """What a run knows of some images: maps, and numbers that describe the files."""

    maps: NDArray[np.float32]
    properties: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class LoadedClass:
    """A class's images, the manifest's rows that they are, and what the run knows of them."""

    sample: ClassSample
    rows: NDArray[np.int64]
    known: Explained


@dataclass(frozen=True)
class LoadedRecipients:
    """Recipients that could be loaded, and the manifest's rows that they are."""

    images: Images
    rows: NDArray[np.int64]

    def apart_from(self, others: "LoadedRecipients") -> Images:
        """Those that are none of the others: an image in two groups would count twice."""
        return self.images.only(torch.from_numpy(~np.isin(self.rows, others.rows)))


def properties_of(part: pa.Table) -> dict[str, NDArray[np.float64]]:
    """PROPERTIES of the rows of a part; NaN where an image has none."""
    columns = [part[name].cast(pa.float64()) for name in COLUMNS_OF_PROPERTIES]
    numbers = [pc.fill_null(column, float("nan")).to_numpy() for column in columns]
    found = dict(zip(COLUMNS_OF_PROPERTIES, numbers, strict=True))
    return found | {"aspect": found["width"] / found["height"]}


class AuditWorker:
    """Holds one model on one device, and the images that cues are pasted into."""

    def __init__(self, job: AuditJob, load: Load) -> None:
        self.job, self.images = job, RowImages(job, job.shards, load)
        self.audit = Audit(job.run)
        job.model.vit.to(torch.device(job.device))
        self.lab = Laboratory(job.model, job.batch_size)

    def publish(self, shard: Shard, skipped: Mapping[int, str]) -> ShardReport:
        """Examine the class of a shard, without the images that are `skipped`, and publish.

        Raises StorageUnavailable.
        """
        started = time.perf_counter()
        images = self.job.classes[shard.index]
        loaded = self.load_class(shard, skipped)
        examination = self.examine(loaded.sample, images.rivals)
        pool = self.recipients.images
        strangers = pool.crops[pool.classes != images.target]
        for number, cue in enumerate(examination.cues):
            picture = png(loaded.sample, cue, strangers)
            self.audit.picture(images.target, number).replace(picture)
        statistics = self._statistics(loaded)
        plain = asdict(examination.evidence) | {
            "rows": loaded.rows.tolist(),
            "statistics": None if statistics is None else asdict(statistics),
        }
        created = self.audit.publish(images.target, plain)
        statuses = {"ok": len(loaded.rows), "left out": shard.rows - len(loaded.rows)}
        return ShardReport(shard, created, statuses, {"compute": time.perf_counter() - started})

    def probe(self, shard: Shard, skipped: Mapping[int, str]) -> None:
        """Audit some images of a class by themselves."""
        nobody = self.job.recipients.only(np.arange(0))
        self.examine(self.load_class(shard, skipped).sample, nobody)

    def examine(self, sample: ClassSample, rivals: Recipients) -> Examination:
        """What there is to say of a class's images."""
        seed, near = self.job.seed + sample.target, self._loaded(rivals)
        pool = self.recipients.apart_from(near)
        return examine(self.lab, sample, pool, near.images, seed)

    def load_class(self, shard: Shard, skipped: Mapping[int, str]) -> LoadedClass:
        """A class's images, without those that cannot be loaded now.

        Raises StorageUnavailable where these are most: then the store is at fault, or the images
        are no longer those of the run.
        """
        images = self.job.classes[shard.index]
        wanted = [i for i in range(shard.start, shard.stop) if i not in skipped]
        loaded = self.images.loaded(images.rows[wanted])
        loaded.refuse_loss(f" of class {images.target}")
        chosen = np.asarray(wanted)[loaded.places]
        rows = images.rows[chosen]
        known = self._explained(rows, np.full(len(rows), images.target))
        sample = ClassSample(
            target=images.target,
            crops=loaded.crops,
            saliency=torch.from_numpy(known.maps),
            explained=torch.from_numpy(images.explained[chosen]),
            discovery=torch.from_numpy(images.discovery[chosen]),
        )
        return LoadedClass(sample, rows, known)

    def _statistics(self, loaded: LoadedClass) -> ClassStatistics | None:
        """The class beside the recipients of other classes; None where either has too few maps."""
        mine = loaded.sample.explained.numpy()
        strangers = self.job.recipients.classes != loaded.sample.target
        if min(int(mine.sum()), int(strangers.sum())) < LEAST_MAPS:
            return None
        others = self._explained_recipients
        both = {
            name: (values[mine], others.properties[name][strangers])
            for name, values in loaded.known.properties.items()
        }
        seed = self.job.seed + loaded.sample.target
        return class_statistics(loaded.known.maps[mine], others.maps[strangers], both, seed)

    @cached_property
    def _explained_recipients(self) -> Explained:
        return self._explained(self.job.recipients.rows, self.job.recipients.classes)

    @cached_property
    def recipients(self) -> LoadedRecipients:
        """The images that cues are pasted into."""
        return self._loaded(self.job.recipients)

    def _loaded(self, recipients: Recipients) -> LoadedRecipients:
        loaded = self.images.loaded(recipients.rows)
        images = Images(loaded.crops, torch.from_numpy(recipients.classes[loaded.places]))
        return LoadedRecipients(images, recipients.rows[loaded.places])

    def _explained(self, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> Explained:
        """What the run knows of images, each explained as a class; zeros where it has no map."""
        grid = self.job.model.grid
        maps = np.zeros((len(rows), *grid), np.float32)
        numbers = {name: np.full(len(rows), np.nan) for name in PROPERTIES}
        for shard, inside in self.images.by_shard(rows):
            wanted = ["row", "target", "saliency", *COLUMNS_OF_PROPERTIES]
            part = self.job.finished.read_part(shard.index, wanted)
            part = part.filter(pc.is_in(part["row"], pa.array(inside)))
            places = np.searchsorted(rows, part["row"].to_numpy())
            for name, values in properties_of(part).items():
                numbers[name][places] = values
            of_target = pc.equal(part["target"], pa.array(targets[places]))
            mine = part.filter(of_target)
            places = np.searchsorted(rows, mine["row"].to_numpy())
            maps[places] = schema.maps_to_numpy(mine["saliency"], grid)
        return Explained(maps, numbers)
