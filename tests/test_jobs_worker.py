"""The worker as a plain object: rows equal what the explainer says, one batch after the other."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from explainer import Explanation, Target, VitClassifier, explain, load_model
from explainer.maps import statistics
from jobs.aggregate import aggregate, class_heatmaps
from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.worker import ExplainWorker, Job, refuse_outage
from storage.images import Reading
from storage.locations import Location, StorageUnavailable
from storage.manifests import read_folder
from storage.row_reader import read_rows
from storage.runs import Run
from storage.schema import explanations, maps_to_numpy

ARGUMENTS = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}


@pytest.fixture
def job(job_of, image_folder: Path, tmp_path: Path) -> Job:
    made = job_of(read_folder(Location(str(image_folder))), tmp_path / "run", ARGUMENTS)
    return replace(made, target=Target("top", 2))


def batches(job: Job, shard: Shard, sizes: list[int] | None = None) -> list[Batch]:
    rows = read_rows(job.rows, shard.start, shard.stop)
    sizes = sizes or [job.batch_size] * -(-len(rows) // job.batch_size)
    starts = np.cumsum([0, *sizes[:-1]])
    return [
        load_batch(rows.slice(start, size), job.reading, job.model.preprocessing)
        for start, size in zip(starts, sizes, strict=True)
    ]


def image_by_image(
    run: Run, model: VitClassifier, rows: list[dict], batch: Batch, explained: Explanation
) -> list[dict]:
    """The rows of a batch, slowly and obviously; `rows` are the manifest's, from row 0 on."""
    made, place = [], 0
    names = model.class_names.names
    for row, (known, image, size) in enumerate(zip(rows, batch.images, batch.sizes, strict=True)):
        common = {
            "run": run.id, "row": row, "image_id": known["image_id"], "uri": known["uri"],
            "label": model.class_names.index(known["label"]), "label_name": known["label"],
            "bytes": size,
        }  # fmt: skip
        for name in ("status", "error", "width", "height", "format", "mode", "has_exif"):
            common[name] = getattr(image, name)
        for name in ("jpeg_quality", "contrast", "sharpness"):
            common[name] = getattr(image, name)
        if image.status != "ok":
            made.append(common)
            continue
        common |= dict(zip(("mean_r", "mean_g", "mean_b"), image.mean, strict=True))
        logits = explained.logits[place]
        predicted = int(logits.argmax())
        for rank, target in enumerate(explained.targets[place].tolist()):
            saliency, scores = explained.saliency[place, rank], explained.scores[place, rank]
            described = statistics(saliency)
            made.append(
                common
                | {
                    "predicted": predicted,
                    "predicted_name": names[predicted],
                    "probability": float(logits.softmax(0)[predicted]),
                    "target": target,
                    "target_name": names[target],
                    "target_kind": "top",
                    "target_rank": rank,
                    "target_probability": float(logits.softmax(0)[target]),
                    "saliency": saliency.flatten().half().numpy(),
                    "score_min": float(scores.min()),
                    "score_max": float(scores.max()),
                    "peak_row": int(described.peak_row),
                    "peak_col": int(described.peak_column),
                    "border_mass": float(described.border_mass),
                    "entropy": float(described.entropy),
                }
            )
        place += 1
    return made


def test_every_column_is_what_a_slow_reimplementation_says(job):
    labels = pa.array(["ant", None, "3", None, "bee", "4"])
    rows = read_rows(job.rows, 0, 6).set_column(2, "label", labels)
    uris = rows["uri"].to_pylist()
    uris[1], uris[4] = "/nowhere.jpg", None
    batch = load_batch(pa.table({"uri": uris}), job.reading, job.model.preprocessing)
    ExplainWorker(replace(job, batch_size=6)).explain_shard(Shard(0, 0, 6), rows, [batch])
    explained = explain(job.model, torch.from_numpy(batch.crops), target="top:2")
    assert len(explained.targets) == 4
    made = image_by_image(job.run, job.model, rows.to_pylist(), batch, explained)
    want = pa.Table.from_pylist(made, schema=explanations(job.model.grid))
    got = job.run.read_part(0)
    for name in want.column_names:
        if pa.types.is_floating(want.schema.field(name).type):
            np.testing.assert_allclose(
                got[name].to_numpy(), want[name].to_numpy(), rtol=1e-6, err_msg=name
            )
        else:
            assert got[name].to_pylist() == want[name].to_pylist(), name


def test_batches_may_differ_in_length_and_go_through_the_model_in_the_runs_own(job):
    shard = Shard(1, 16, 26)
    rows = read_rows(job.rows, 16, 26)
    loaded = batches(job, shard, [1, 7, 2])
    ExplainWorker(job).explain_shard(shard, rows, loaded)
    table = job.run.read_part(1)
    assert table["row"].to_pylist() == [row for row in range(16, 26) for _ in range(2)]
    assert table["image_id"].to_pylist() == [i for i in rows["image_id"].to_pylist() for _ in "12"]
    pieces = [part for b in loaded for part in torch.from_numpy(b.crops).split(job.batch_size)]
    want = [explain(job.model, each, target="top:2").saliency.flatten(0, 1) for each in pieces]
    maps = maps_to_numpy(table["saliency"], job.model.grid)
    np.testing.assert_array_equal(maps, torch.cat(want).half().numpy(), strict=True)


def test_a_shard_of_other_rows_than_were_loaded_is_refused(job):
    shard = Shard(1, 16, 26)
    loaded = batches(job, shard)[:-1]
    with pytest.raises(RuntimeError, match="8 images were loaded for a shard of 10 rows"):
        ExplainWorker(job).explain_shard(shard, read_rows(job.rows, 16, 26), loaded)


def test_an_image_has_a_row_a_target(job):
    shard, per_image = Shard(1, 16, 26), 5
    every = replace(job, target=Target("all"))
    ExplainWorker(every).explain_shard(shard, read_rows(job.rows, 16, 26), batches(job, shard))
    rows = job.run.read_part(1).to_pylist()
    assert len(rows) == 10 * per_image
    for first in range(0, len(rows), per_image):
        ranks = rows[first : first + per_image]
        assert [row["target_rank"] for row in ranks] == list(range(per_image))
        assert len({row["target"] for row in ranks}) == per_image
        assert ranks[0]["target"] == ranks[0]["predicted"]
        odds = [row["target_probability"] for row in ranks]
        assert odds == sorted(odds, reverse=True)


def test_labels_that_are_classes_are_explained_and_grouped(job):
    names = ("ant", "bee", "cat", "dog", "eel")
    model = load_model("vit_tiny_patch16_224", seed=0, model_args=ARGUMENTS, class_names=names)
    labelled = replace(job, model=model, target=Target("label"))
    shard = Shard(0, 10, 50)
    known = read_rows(job.rows, 10, 50).set_column(2, "label", pa.array((names[:3] * 14)[:40]))
    loaded = batches(job, shard)
    uris = [None, *known["uri"].to_pylist()[9:12]]
    loaded[2] = load_batch(pa.table({"uri": uris}), job.reading, model.preprocessing)
    ExplainWorker(labelled).explain_shard(shard, known, loaded)
    rows = job.run.read_part(0).to_pylist()
    explained = [row for row in rows if row["status"] == "ok"]
    assert len(explained) == 39
    assert all(row["target"] == row["label"] for row in explained)
    assert [row["label_name"] for row in rows] == known["label"].to_pylist()
    heatmaps = class_heatmaps(aggregate(job.run, [0], model.grid), model.grid).to_pylist()
    count = {(row["target_name"], row["group"]): row["count"] for row in heatmaps}
    right = sum(row["predicted"] == row["label"] for row in explained)
    assert sum(n for (_, group), n in count.items() if group == "all") == 39
    assert sum(n for (_, group), n in count.items() if group == "correct") == right
    assert sum(n for (_, group), n in count.items() if group == "incorrect") == 39 - right


def test_a_store_that_refuses_most_of_a_shard_makes_no_rows(job, s3):
    uris = []
    for number in range(4):
        s3.location(f"{number}.jpg").create(b"a picture")
        uris.append(s3.url(f"{number}.jpg"))
    reading = Reading(s3.options_without_rights)
    refused = load_batch(pa.table({"uri": uris}), reading, job.model.preprocessing)
    rows = read_rows(job.rows, 0, 4).set_column(1, "uri", pa.array(uris))
    with pytest.raises(StorageUnavailable, match="4 of a shard's 4 images are denied") as caught:
        ExplainWorker(job).explain_shard(Shard(0, 0, 4), rows, [refused])
    assert "strangers-secret" not in str(caught.value)
    assert job.run.committed() == set()


@pytest.mark.parametrize(
    ("uri", "status", "refused"),
    [("s3://b/k", "missing", True), ("/a/path", "missing", False), ("s3://b/k", "ok", False)],
)
def test_more_than_half_of_the_images_must_fail_alike_at_a_remote_store(uri, status, refused):
    good, bad = {"uri": "s3://b/good", "status": "ok", "error": None}, {"uri": uri, "error": "gone"}
    schema = pa.schema([(name, pa.string()) for name in ("uri", "status", "error")])
    # Two images with five targets each beside three that fail: rows are not images.
    rows = pa.Table.from_pylist([good] * 10 + [bad | {"status": status}] * 3, schema)
    if refused:
        with pytest.raises(StorageUnavailable, match="3 of a shard's 5 images are missing"):
            refuse_outage(rows, 5)
    else:
        refuse_outage(rows, 5)
    refuse_outage(rows, 6)


def test_the_wait_for_a_first_batch_is_told_apart(job):
    def late(loaded: list[Batch]) -> Iterator[Batch]:
        for batch in loaded:
            time.sleep(0.02)
            yield batch

    worker = ExplainWorker(job)
    for shard, first, others in [(Shard(1, 16, 28), 1, 2), (Shard(2, 28, 36), 0, 2)]:
        rows, loaded = read_rows(job.rows, shard.start, shard.stop), batches(job, shard)
        seconds = worker.explain_shard(shard, rows, late(loaded)).seconds
        assert (seconds["first_wait"] > 0) == bool(first)
        assert seconds["first_wait"] >= first * 0.02
        assert seconds["wait"] >= others * 0.02
        assert seconds["decode"] == pytest.approx(sum(batch.decode_seconds for batch in loaded))
        assert min(seconds[stage] for stage in ("fetch", "compute", "write")) > 0


def test_rows_equal_what_the_explainer_says(job):
    shard = Shard(1, 16, 26)
    rows = read_rows(job.rows, 16, 26)
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
    rows, loaded = read_rows(job.rows, 0, 16), batches(job, shard)
    assert ExplainWorker(job).explain_shard(shard, rows, loaded).created
    first = job.run.part(0).read()
    assert not ExplainWorker(job).explain_shard(shard, rows, loaded).created
    assert job.run.part(0).read() == first


def test_a_batch_without_a_single_good_image_is_rows_too(job):
    shard = Shard(0, 0, 4)
    rows = read_rows(job.rows, 0, 4)
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
    rows, loaded = read_rows(job.rows, 16, 26), batches(job, shard)
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
    rows, loaded = read_rows(job.rows, 16, 26), batches(job, shard)
    job.model.vit.patch_embed = Full(job.model.vit.patch_embed)
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        ExplainWorker(job).explain_shard(shard, rows, loaded)
