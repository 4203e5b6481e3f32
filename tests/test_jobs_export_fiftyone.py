"""FiftyOne's dataset holds the run's images, maps, classes and cues where they lie.

FiftyOne's pins contradict ours and it wants a MongoDB server, so it loads the export only where
SALIENCY_FIFTYONE names the Python of an environment with `fiftyone` and `mongomock`, whose
database in memory it is then given; all else is held against the format that it writes itself.
"""

import base64
import io
import json
import os
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.commands import ExportConfig
from jobs.config import Exit
from jobs.export import export
from jobs.export_fiftyone import heatmap
from jobs.export_fiftyone_fields import array, field


def exported(root: Path, out: Path, **options: str) -> tuple[dict[int, dict], dict[str, Any]]:
    """The samples by their row, and metadata.json."""
    request = ExportConfig(str(root), str(out), to="fiftyone", **options)
    assert export(request, Console(file=io.StringIO())) is Exit.COMPLETE
    samples = json.loads((out / "samples.json").read_text())["samples"]
    metadata = json.loads((out / "metadata.json").read_text())
    return {sample["row"]: sample for sample in samples}, metadata


def images_of(root: Path) -> dict[int, dict]:
    rows = pq.read_table(root / "explanations").to_pylist()
    return {row["row"]: row for row in rows if row["target_rank"] == 0}


def array_of(value: dict) -> np.ndarray:
    data = zlib.decompress(base64.b64decode(value["$binary"]["base64"]))
    return np.load(io.BytesIO(data), allow_pickle=False)


def test_a_sample_is_an_explained_image_with_what_is_known_of_it(audited, tmp_path):
    samples, _ = exported(audited.root, tmp_path / "out")
    images = images_of(audited.root)
    assert samples.keys() == images.keys() == set(range(24)) - {audited.missing}
    for number, sample in samples.items():
        image = images[number]
        assert sample["image_id"] == audited.image_ids[number]
        assert (tmp_path / "out" / sample["filepath"]).read_bytes() == (
            Path(image["uri"]).read_bytes()
        )
        assert sample["filepath"].startswith(f"data/000000/{number:09d}.")
        assert sample.get("ground_truth", {}).get("label") == image["label_name"]
        assert sample["prediction"]["label"] == image["predicted_name"]
        assert sample["prediction"]["confidence"] == image["probability"]
        assert sample["metadata"]["width"] == image["width"]
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (said["samples"], said["images left out"]) == (23, 1)


def test_tags_and_cues_are_those_of_the_audit(audited, tmp_path):
    samples, metadata = exported(audited.root, tmp_path / "out")
    assert samples[3]["tags"] == [
        "../up cue 1", "carrier", "compact-cue", "pentagon cue 0", "shortcut", "wrong",
    ]  # fmt: skip
    assert samples[9]["tags"] == ["unknown label"]
    assert samples[16]["tags"] == ["a/b cue 0", "carrier", "cleared"]
    assert samples[1]["tags"] == []
    (row_of_cells,) = samples[21]["cues"]["detections"]
    assert (row_of_cells["label"], row_of_cells["verdict"]) == ("../up cue 1", "compact-cue")
    left, top, width, height = row_of_cells["bounding_box"]
    image = images_of(audited.root)[21]
    crop = 64 / 71 * min(image["width"], image["height"])  # of the side that is resized to 71
    assert width * image["width"] == pytest.approx(crop, rel=0.02)
    assert height * image["height"] == pytest.approx(crop / 4, rel=0.02)
    assert (left + width / 2, top + height) == pytest.approx((0.5, 0.5), abs=0.01)
    assert samples[1]["cues"]["detections"] == []
    assert metadata["default_classes"] == list(audited.class_names)


def test_a_heatmap_lies_on_the_image_where_the_model_saw_it():
    grid, image = (4, 4), {"width": 200, "height": 100}
    seen = (50.0, 0.0, 150.0, 100.0)
    cells = np.zeros(grid)
    cells[1, 2] = 0.5
    found = heatmap(cells.ravel(), grid, image, seen)
    assert found.shape == (16, 32)
    assert set(np.unique(found)) == {0, 128}
    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max() + 1) == (4, 8)  # 25 to 50 of 100 pixels
    assert (columns.min(), columns.max() + 1) == (16, 20)  # 100 to 125 of 200
    padded = heatmap(np.ones(16), grid, {"width": 200, "height": 20}, (0.0, -90.0, 200.0, 110.0))
    assert padded.shape == (2, 16)
    assert (padded == 255).all()


def test_each_target_has_its_heatmap(audited_top, tmp_path):
    samples, metadata = exported(audited_top.root, tmp_path / "out")
    names = {each["name"] for each in metadata["sample_fields"]}
    rows = pq.read_table(audited_top.root / "explanations").to_pylist()
    for rank, name in enumerate(("", "_1", "_2")):
        assert {f"target{name}", f"saliency{name}"} <= names
        for row in rows:
            if row["target_rank"] != rank:
                continue
            sample = samples[row["row"]]
            assert sample[f"target{name}"]["label"] == row["target_name"]
            values = array_of(sample[f"saliency{name}"]["map"])
            assert values.max() == 255
            assert set(np.unique(values)) <= set(np.round(255 * np.array(row["saliency"])))
    assert "saliency_3" not in names


def test_images_can_be_referred_to_and_every_id_is_its_own(audited, tmp_path):
    samples, _ = exported(audited.root, tmp_path / "out", images="refer")
    images = images_of(audited.root)
    assert {n: sample["filepath"] for n, sample in samples.items()} == {
        n: image["uri"] for n, image in images.items()
    }
    assert not (tmp_path / "out" / "data").exists()
    ids = []

    def collect(value: object) -> None:
        if isinstance(value, dict):
            ids.extend([value["_id"]["$oid"]] if "_id" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                collect(each)

    collect(list(samples.values()))
    assert len(ids) == len(set(ids)) > 23 * 3
    assert all(len(each) == 24 for each in ids)


def test_fields_are_written_as_fiftyone_writes_them():
    """Taken from what FiftyOne 1.22.1 exported."""
    found = field("saliency", "Heatmap")
    assert found["ftype"] == "fiftyone.core.fields.EmbeddedDocumentField"
    assert found["embedded_doc_type"] == "fiftyone.core.labels.Heatmap"
    assert [(each["name"], each["db_field"]) for each in found["fields"]] == [
        ("id", "_id"), ("tags", "tags"), ("map", "map"), ("map_path", "map_path"),
        ("range", "range"),
    ]  # fmt: skip
    (inner,) = field("cues", "Detections")["fields"]
    assert inner["ftype"] == "fiftyone.core.fields.ListField"
    assert inner["subfield"] == "fiftyone.core.fields.EmbeddedDocumentField"
    of_fiftyone = "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RrG"
    of_fiftyone += "OgommjoKtQpkAy4GJAAAw3Ybug=="
    written = {"$binary": {"base64": of_fiftyone, "subType": "00"}}
    assert (array_of(written) == np.zeros((3, 4))).all()
    assert array_of(array(np.eye(3, dtype=np.uint8))).tolist() == np.eye(3).tolist()


LOAD = """
import json, os, sys
os.environ |= {"FIFTYONE_DATABASE_URI": "mongodb://localhost:1", "FIFTYONE_DO_NOT_TRACK": "1"}
os.environ |= {"FIFTYONE_DISABLE_SERVICES": "1", "FIFTYONE_DATABASE_VALIDATION": "0"}
os.environ |= {"FIFTYONE_SHOW_PROGRESS_BARS": "0"}
import mongoengine, mongomock, mongomock.gridfs, pymongo
mongomock.gridfs.enable_gridfs_integration()
client = mongomock.MongoClient()
client._closed = False
connect, pymongo.MongoClient = mongoengine.connect, lambda *_, **__: client
mongoengine.connect = lambda name, **_: connect(
    name, host="mongodb://localhost", mongo_client_class=lambda *_, **__: client
)
import fiftyone.core.odm.database as database
database._validate_db_version = lambda *_, **__: None
import fiftyone
dataset = fiftyone.Dataset.from_dir(
    dataset_dir=sys.argv[1], dataset_type=fiftyone.types.FiftyOneDataset
)
samples = [
    {
        "row": sample.row, "path": sample.filepath, "tags": sample.tags,
        "label": sample.ground_truth and sample.ground_truth.label,
        "confidence": sample.prediction.confidence, "shape": sample.saliency.map.shape,
        "cues": [[cue.label, cue.verdict, cue.bounding_box] for cue in sample.cues.detections],
    }
    for sample in dataset
]
print(json.dumps({"samples": samples, "fields": list(dataset.get_field_schema())}))
"""


def test_fiftyone_loads_it(audited_top, tmp_path):
    python = os.environ.get("SALIENCY_FIFTYONE")
    if python is None:
        pytest.skip("no FiftyOne: set SALIENCY_FIFTYONE to a Python with fiftyone and mongomock")
    samples, _ = exported(audited_top.root, tmp_path / "out")
    answer = subprocess.run(
        [python, "-c", LOAD, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    loaded = json.loads(answer.stdout.splitlines()[-1])
    assert {"saliency_2", "target_2", "cues", "metadata"} <= set(loaded["fields"])
    assert len(loaded["samples"]) == len(samples)
    for got in loaded["samples"]:
        wrote = samples[got["row"]]
        assert got["path"] == str(tmp_path / "out" / wrote["filepath"])
        assert got["tags"] == wrote["tags"]
        assert got["label"] == wrote.get("ground_truth", {}).get("label")
        assert got["confidence"] == wrote["prediction"]["confidence"]
        assert tuple(got["shape"]) == array_of(wrote["saliency"]["map"]).shape
        assert got["cues"] == [
            [cue["label"], cue["verdict"], cue["bounding_box"]]
            for cue in wrote["cues"]["detections"]
        ]
