"""The worker as a plain object: rows equal what the explainer says, one batch after the other."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from explainer import ReciproCam, Target, explain, load_model
from explainer.maps import statistics
from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.worker import ExplainWorker, Job
from storage.images import Reading
from storage.locations import Location
from storage.manifests import read_folder
from storage.runs import open_or_create
from storage.schema import maps_to_numpy

ARGUMENTS = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}


@pytest.fixture
def job(image_folder: Path, tmp_path: Path) -> Job:
    run = open_or_create(Location(str(tmp_path / "run")), {"fingerprint_of": {"a": 1}})
    manifest = read_folder(Location(str(image_folder)))
    run.manifest.create(manifest.data)
    return Job(
        model=load_model("vit_tiny_patch16_224", seed=0, model_args=ARGUMENTS),
        method=ReciproCam(),
        target=Target("top", 2),
        run=run,
        rows=manifest.source(run.manifest),
        reading=Reading({}),
        batch_size=4,
        precision="float32",
        device="cpu",
        threads=None,
    )


def batches(job: Job, shard: Shard) -> list[Batch]:
    rows = job.rows.read(shard.start, shard.stop)
    return [
        load_batch(rows.slice(start, job.batch_size), job.reading, job.model.preprocessing)
        for start in range(0, len(rows), job.batch_size)
    ]


def test_rows_equal_what_the_explainer_says(job):
    shard = Shard(1, 16, 26)
    rows = job.rows.read(16, 26)
    loaded = batches(job, shard)
    report = ExplainWorker(job).explain_shard(shard, rows, loaded)
    assert report.created
    assert report.statuses == {"ok": 10}
    table = job.run.read_part(1)
    assert table["row"].to_pylist() == [row for row in range(16, 26) for _ in range(2)]
    maps = maps_to_numpy(table["saliency"], job.model.grid)
    place = 0
    for batch in loaded:
        crops = torch.from_numpy(batch.crops)
        want = explain(job.model, crops, target="top:2")
        rows_here = slice(place, place + 2 * len(crops))
        np.testing.assert_array_equal(
            maps[rows_here], want.saliency.flatten(0, 1).half().numpy(), strict=True
        )
        part = table.slice(place, 2 * len(crops))
        assert part["target"].to_pylist() == want.targets.flatten().tolist()
        assert part["score_max"].to_pylist() == want.scores.flatten(0, 1).amax((-2, -1)).tolist()
        described = statistics(want.saliency.flatten(0, 1))
        assert part["peak_row"].to_pylist() == described.peak_row.tolist()
        assert part["peak_col"].to_pylist() == described.peak_column.tolist()
        place += 2 * len(crops)
    assert place == table.num_rows


def test_a_second_worker_leaves_the_part_as_it_is(job):
    shard = Shard(0, 0, 16)
    rows, loaded = job.rows.read(0, 16), batches(job, shard)
    assert ExplainWorker(job).explain_shard(shard, rows, loaded).created
    first = job.run.part(0).read()
    assert not ExplainWorker(job).explain_shard(shard, rows, loaded).created
    assert job.run.part(0).read() == first


def test_a_batch_without_a_single_good_image_is_rows_too(job):
    shard = Shard(0, 0, 4)
    rows = job.rows.read(0, 4)
    gone = pa.table({"uri": ["/nowhere/a.jpg", None, "/nowhere/b.jpg", ""]})
    nothing = load_batch(gone, job.reading, job.model.preprocessing)
    report = ExplainWorker(job).explain_shard(shard, rows, [nothing])
    assert report.statuses == {"missing": 4}
    table = job.run.read_part(0)
    assert table["status"].to_pylist() == ["missing"] * 4
    assert table["saliency"].null_count == table["target"].null_count == 4
    assert table["image_id"].to_pylist() == rows["image_id"].to_pylist()


class Cramped(torch.nn.Module):
    """A patch embedding that has room for two images."""

    def __init__(self, embedding: torch.nn.Module) -> None:
        super().__init__()
        self.embedding, self.grid_size = embedding, embedding.grid_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("no room for more than two images")
        return self.embedding(images)


def test_a_batch_that_does_not_fit_is_halved_and_none_of_it_is_lost(job):
    shard = Shard(1, 16, 26)
    rows, loaded = job.rows.read(16, 26), batches(job, shard)
    want = [explain(job.model, torch.from_numpy(b.crops), target="top:2") for b in loaded]
    job.model.vit.patch_embed = Cramped(job.model.vit.patch_embed)
    worker = ExplainWorker(job)
    worker.explain_shard(shard, rows, loaded)
    table = job.run.read_part(1)
    assert table.schema.metadata[b"batch_size"] == b"2"
    assert table.num_rows == 20
    maps = maps_to_numpy(table["saliency"], job.model.grid)
    expected = torch.cat([each.saliency.flatten(0, 1) for each in want]).half().numpy()
    np.testing.assert_allclose(maps, expected, atol=1e-3)
    assert worker.at_once == 2


def test_an_image_that_does_not_fit_alone_fails_the_shard(job):
    class Full(Cramped):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError(f"no room for {len(images)}")

    shard = Shard(1, 16, 26)
    rows, loaded = job.rows.read(16, 26), batches(job, shard)
    job.model.vit.patch_embed = Full(job.model.vit.patch_embed)
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        ExplainWorker(job).explain_shard(shard, rows, loaded)
