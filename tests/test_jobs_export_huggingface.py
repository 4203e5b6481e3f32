"""What `datasets` loads is the run: images, maps, classes and cues, whatever they are called."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs import export_huggingface
from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit, ExplainConfig, InputConfig
from jobs.export import export
from jobs.export_names import distinct
from storage.locations import StorageUnavailable

FILE_COLUMNS = ("status", "error", "label_name", "probability", "border_mass", "target_kind")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def load(root: Path, out: Path, **options: str) -> datasets.Dataset:
    request = ExportConfig(str(root), str(out), to="huggingface", **options)
    assert export(request, Console(file=io.StringIO())) is Exit.COMPLETE
    cache = str(out) + "-cache"
    return datasets.load_dataset(str(out), split="train", cache_dir=cache)


def rows_of(root: Path) -> list[dict]:
    return pq.read_table(root / "explanations").to_pylist()


def test_a_row_is_an_image_with_its_map_label_and_cues(audited, tmp_path):
    dataset, rows = load(audited.root, tmp_path / "out"), rows_of(audited.root)
    assert len(dataset) == len(rows) == 24
    labels = dataset.features["label"]
    assert labels.names == list(audited.class_names)
    assert dataset.features["saliency"] == datasets.Array2D((4, 4), "float16")
    for got, row in zip(dataset, rows, strict=True):
        assert got["image_id"] == audited.image_ids[row["row"]]
        assert {name: got[name] for name in FILE_COLUMNS} == {n: row[n] for n in FILE_COLUMNS}
        assert (got["label"], got["predicted"]) == (row["label"], row["predicted"])
        if row["status"] != "ok":
            assert (got["image"], got["saliency"]) == (None, None)
            continue
        size = (row["width"], row["height"])
        turned = row["row"] == 5  # by its EXIF orientation, as `datasets` does
        assert got["image"].size == (size[::-1] if turned else size)
        left, top, right, bottom = got["seen"]
        assert right - left == pytest.approx(
            bottom - top, rel=0.02
        )  # a square, cut from the middle
        assert (left + right) / 2 == pytest.approx(size[0] / 2, abs=2)
        np.testing.assert_array_equal(np.reshape(got["saliency"], -1), row["saliency"])
    cues = {row["row"]: row["cues"] for row in dataset if row["cues"]}
    assert sorted(cues) == [0, 3, 5, 16, 21, 23]
    assert [cue["name"] for cue in cues[3]] == ["pentagon cue 0", "../up cue 1"]
    assert np.flatnonzero(cues[23][0]["cells"]).tolist() == [0, 15]
    assert cues[0][0]["verdict"] == "shortcut"


def test_the_images_are_the_files_and_their_names_lead_nowhere(audited, tmp_path):
    dataset, rows = load(audited.root, tmp_path / "out"), rows_of(audited.root)
    files = dataset.cast_column("image", datasets.Image(decode=False))
    for got, row in zip(files, rows, strict=True):
        if row["status"] == "ok":
            assert got["image"]["bytes"] == Path(row["uri"]).read_bytes()
            assert "/" not in got["image"]["path"]


def test_further_targets_are_a_column_of_their_own(audited_top, tmp_path):
    dataset, rows = load(audited_top.root, tmp_path / "out"), rows_of(audited_top.root)
    assert len(dataset) == 24
    for got in dataset:
        mine = [row for row in rows if row["row"] == got["row"]]
        if got["status"] != "ok":
            assert got["further"] == []
            continue
        assert got["target"] == mine[0]["target"]
        np.testing.assert_array_equal(np.reshape(got["saliency"], -1), mine[0]["saliency"])
        assert [each["target"] for each in got["further"]] == [row["target"] for row in mine[1:]]
        for each, row in zip(got["further"], mine[1:], strict=True):
            np.testing.assert_array_equal(each["saliency"], row["saliency"])


def test_images_can_be_referred_to(audited, tmp_path):
    dataset = load(audited.root, tmp_path / "out", images="refer")
    files = dataset.cast_column("image", datasets.Image(decode=False))
    for got in files:
        if got["status"] == "ok":
            assert got["image"] == {"bytes": None, "path": got["uri"]}
        else:
            assert got["image"] is None
    with Image.open(dataset[0]["uri"]) as picture:
        np.testing.assert_array_equal(np.asarray(dataset[0]["image"]), np.asarray(picture))


def test_rows_go_on_in_the_next_file(audited, tmp_path, monkeypatch):
    whole = load(audited.root, tmp_path / "whole")
    monkeypatch.setattr(export_huggingface, "FILE_BYTES", 10_000)
    monkeypatch.setattr(export_huggingface, "GROUP_ROWS", 5)
    dataset = load(audited.root, tmp_path / "out")
    assert len(list((tmp_path / "out" / "data").iterdir())) > 2
    assert dataset["row"][:] == whole["row"][:] == list(range(24))
    streamed = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert [row["row"] for row in streamed] == list(range(24))


def test_a_run_without_labels_or_audit_is_exported(finished, tmp_path):
    # Another test of this process may have audited the run that all share.
    shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("audit"))
    dataset = load(tmp_path / "run", tmp_path / "out")
    assert "cues" not in dataset.column_names
    assert set(dataset["label"]) == {None}
    assert set(dataset["label_name"]) == {"ant", "bee", "cat"}
    assert None not in dataset["predicted"]


def test_images_that_are_gone_are_counted_and_most_of_them_end_the_export(audited, tmp_path):
    shutil.copytree(audited.root.parent, tmp_path / "copy")
    manifest = tmp_path / "copy" / "run" / "manifest.parquet"
    table = pq.read_table(manifest)
    uris = [f"{uri}.gone" if row < 3 else uri for row, uri in enumerate(table["uri"].to_pylist())]
    place = table.schema.get_field_index("uri")
    pq.write_table(table.set_column(place, "uri", [uris]), manifest)
    dataset = load(tmp_path / "copy" / "run", tmp_path / "out")
    assert [row["image"] is None for row in dataset][:4] == [True, True, True, False]
    assert dataset[0]["saliency"] is not None
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said["images not to be read now"] == 3
    gone = [f"{uri}.gone" for uri in uris]
    pq.write_table(table.set_column(place, "uri", [gone]), manifest)
    with pytest.raises(StorageUnavailable, match="15 of 15 images that the run explained cannot"):
        load(tmp_path / "copy" / "run", tmp_path / "out2")
    assert not (tmp_path / "out2" / "export.json").exists()


def test_images_within_other_files_are_copied_not_referred_to(
    small_config: ExplainConfig, run_job, image_folder, tmp_path
):
    paths = sorted(image_folder.rglob("*.*g"))[:6]
    table = pa.table({"image": [path.read_bytes() for path in paths], "id": list("abcdef")})
    pq.write_table(table, tmp_path / "images.parquet")
    config = replace(
        small_config,
        out=str(tmp_path / "run"),
        input=InputConfig(manifest=str(tmp_path / "images.parquet")),
    )
    assert run_job(config)[0] is Exit.COMPLETE
    dataset = load(Path(config.out), tmp_path / "out")
    files = dataset.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in files] == [path.read_bytes() for path in paths]
    with pytest.raises(ConfigurationError, match="refer: the images of this run lie within other"):
        load(Path(config.out), tmp_path / "out2", images="refer")


def test_images_and_run_in_s3_are_exported_there(audited, s3, tmp_path):
    shutil.copytree(audited.root, tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "manifest.parquet")
    uris = table["uri"].to_pylist()
    for number, uri in enumerate(uris):
        if number != audited.missing:
            s3.location(f"images/{number}").create(Path(uri).read_bytes())
    remote = pa.array([s3.url(f"images/{number}") for number in range(len(uris))])
    place = table.schema.get_field_index("uri")
    pq.write_table(table.set_column(place, "uri", remote), tmp_path / "run" / "manifest.parquet")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            s3.location(f"run/{path.relative_to(tmp_path / 'run')}").create(path.read_bytes())
    (tmp_path / "options.json").write_text(json.dumps(s3.options))
    options = str(tmp_path / "options.json")
    storages = {f"{name}_storage": options for name in ("input", "output")}
    request = ExportConfig(s3.url("run"), s3.url("out"), "huggingface", **storages)
    assert export(request, Console(file=io.StringIO())) is Exit.COMPLETE
    local = ExportConfig(str(audited.root), str(tmp_path / "out"), to="huggingface")
    export(local, Console(file=io.StringIO()))
    names = sorted(s3.location("out").walk())
    assert names == ["README.md", "data/train-00000.parquet", "export-begun.json", "export.json"]
    for name in names:
        assert s3.location(f"out/{name}").read() == (tmp_path / "out" / name).read_bytes()


def test_class_names_are_distinct():
    names = {0: "crane", 1: "gull", 3: "crane"}
    assert distinct(names) == ["crane (0)", "gull", "class 2", "crane (3)"]
    assert distinct({}) == []
