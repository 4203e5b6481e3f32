"""Boxes of cues lie where the model saw them, as pycocotools reads them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

from explainer.preprocess import Preprocessing, decode
from jobs.commands import ExportConfig
from jobs.config import Exit
from jobs.export import export
from jobs.export_findings import Carrier, Cue
from jobs.export_plan import plan
from jobs.export_regions import cells_in_pixels, rectangles

# pycocotools' own arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CORNER, ROW_OF_CELLS = [10, 11, 14, 15], [4, 5, 6, 7]
HELD = {(0, 0): CORNER, (0, 3): [0], (0, 5): CORNER, (0, 23): [0, 15]}
HELD |= {(2, 3): ROW_OF_CELLS, (2, 21): ROW_OF_CELLS, (1, 16): CORNER}


@pytest.fixture
def coco(audited, tmp_path) -> COCO:
    request = ExportConfig(str(audited.root), str(tmp_path / "out"), to="coco")
    assert export(request, Console(file=io.StringIO())) is Exit.COMPLETE
    return COCO(tmp_path / "out" / "annotations.json")


def rows_of(root: Path) -> dict[int, dict]:
    return {row["row"]: row for row in pq.read_table(root / "explanations").to_pylist()}


def preprocessing_of(root: Path) -> Preprocessing:
    stored = json.loads((root / "run.json").read_text())["fingerprint_of"]["preprocessing"]
    return Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})


def test_each_carrier_is_an_annotation_of_its_cue(coco, audited):
    names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    assert list(names.values()) == [
        "pentagon cue 0 (shortcut)",
        "../up cue 1 (compact-cue)",
        "<script>alert(1)</script> cue 0 (not-testable)",
        "a/b cue 0 (cleared)",
    ]
    of_name = {
        audited.class_names.index(name.rpartition(" cue ")[0]): i for i, name in names.items()
    }
    found = [(a["category_id"], a["image_id"] - 1) for a in coco.loadAnns(coco.getAnnIds())]
    assert sorted(found) == sorted((of_name[target], row) for target, row in HELD)
    rows = rows_of(audited.root)
    for image in coco.loadImgs(coco.getImgIds()):
        row = rows[image["id"] - 1]
        assert (image["width"], image["height"]) == (row["width"], row["height"])
        assert image["image_id"] == audited.image_ids[row["row"]]
        with Image.open(image["file_name"]) as picture:  # no image_id here is a path
            assert picture.size == (image["width"], image["height"])


def test_what_is_painted_into_a_box_reaches_the_model_in_the_cells_of_the_cue(coco, audited):
    preprocessing = preprocessing_of(audited.root)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        sink = io.BytesIO()
        Image.fromarray(255 * mask).save(sink, "PNG")
        crop = decode(sink.getvalue(), preprocessing).crop
        brightness = crop[0].reshape(4, 16, 4, 16)[:, 3:13, :, 3:13].mean((1, 3)) / 255
        target = {1: 0, 2: 2, 4: 1}[annotation["category_id"]]
        cells = HELD[target, annotation["image_id"] - 1]
        wanted = np.isin(np.arange(16), cells).reshape(4, 4)
        assert brightness[wanted].min() > 0.9
        assert brightness[~wanted].max() < 0.1


def test_box_area_and_polygons_agree(coco):
    for annotation in coco.loadAnns(coco.getAnnIds()):
        left, top, width, height = annotation["bbox"]
        corners = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
        assert np.allclose(corners.min(0), (left, top), atol=0.01)
        assert np.allclose(corners.max(0), (left + width, top + height), atol=0.02)
        mask = coco.annToMask(annotation)
        assert abs(mask.sum() - annotation["area"]) <= 0.12 * annotation["area"]


def test_the_cells_of_a_frame_leave_its_middle_out():
    cells = np.ones((4, 5), bool)
    cells[1:3, 1:4] = False
    found = rectangles(cells)
    assert found == [(0, 0, 1, 5), (1, 0, 3, 1), (1, 4, 3, 5), (3, 0, 4, 5)]
    random = np.random.default_rng(0)
    for _ in range(50):
        cells = random.random((6, 7)) < 0.5
        painted = np.zeros_like(cells, int)
        for first_row, first_column, last_row, last_column in rectangles(cells):
            painted[first_row:last_row, first_column:last_column] += 1
        assert (painted == cells).all()


def test_cells_beyond_the_image_have_no_box(audited, tmp_path):
    request = ExportConfig(str(audited.root), str(tmp_path / "out"), to="coco")
    exported = plan(request)
    stored = exported.finished.run.description["fingerprint_of"]["preprocessing"]
    stored["crop_mode"] = "border"  # a wide image gets bars above and below
    cue = Cue({"target": 0, "cue": 0})

    def boxes(cell: int) -> list:
        cells = tuple(i == cell for i in range(16))
        return cells_in_pixels(exported, Carrier(0, cue, 1.0, cells), {"width": 400, "height": 40})

    assert boxes(1) == boxes(13) == []
    ((left, top, right, bottom),) = boxes(5)
    assert top == 0.0
    assert bottom == pytest.approx(160 / 7)  # the middle, of an image resized to 7 rows
    assert 0 < left < right < 400
