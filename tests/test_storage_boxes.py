"""Boxes of images from tables, and evaluations in their directories."""

import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from storage.boxes import BoxesError, read_boxes
from storage.evaluations import Part, numbers, open_or_create_evaluation
from storage.locations import Location
from storage.runs import open_or_create

HEAD = "image_id,left,top,right,bottom\n"
NAMES = ["000139", "2024-01-01"]
ROWS = [
    {"image_id": "a.jpg", "left": 1, "top": 2, "right": 30, "bottom": 40.5},
    {"image_id": "b.jpg", "left": 0, "top": 0, "right": 5, "bottom": 5},
    {"image_id": "a.jpg", "left": 7, "top": 8, "right": 9, "bottom": 10},
]


@pytest.mark.parametrize("name", ["boxes.parquet", "boxes.csv", "boxes.jsonl"])
def test_boxes_are_read_by_image_from_each_format(name, tmp_path):
    table = pa.Table.from_pylist(ROWS).append_column("note", pa.array(["x", "y", "z"]))
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(table, path)
    elif name.endswith("csv"):
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    boxes = read_boxes(Location(str(path)))
    assert boxes.of == {"a.jpg": [(1, 2, 30, 40.5), (7, 8, 9, 10)], "b.jpg": [(0, 0, 5, 5)]}
    assert len(boxes.digest) == 64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("boxes.txt", "", r"boxes.txt must end in .parquet, .csv, .jsonl$"),
        ("a.csv", "image_id,left,top,right\na,1,2,3\n", "needs columns image_id, left, top, right"),
        (
            "b.csv",
            f"{HEAD}a,1,2,x,4\n",
            "the latter in pixels, or image_id and mask in Parquet; .*",
        ),
        (
            "c.csv",
            f"{HEAD}a,5,2,3,4\n",
            r"\[5.0, 2.0, 3.0, 4.0\] of 'a' is",
        ),
        (
            "d.csv",
            f"{HEAD}a,1,2,,4\n",
            "is no box: left < right and top < bottom",
        ),
        ("e.parquet", "not parquet", "needs columns image_id"),
    ],
)
def test_what_holds_no_boxes_is_refused_with_the_rule(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(BoxesError, match=message):
        read_boxes(Location(str(tmp_path / name)))


def test_names_that_look_like_numbers_or_dates_stay_as_they_are(tmp_path):
    (tmp_path / "a.csv").write_text(f"{HEAD}000139,1,2,3,4\n2024-01-01,1,2,3,4\n")
    rows = [{"image_id": name, "left": 1, "top": 2, "right": 3, "bottom": 4} for name in NAMES]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("a.csv", "a.jsonl"):
        assert list(read_boxes(Location(str(tmp_path / name))).of) == NAMES


def test_a_null_in_place_of_an_object_ends_no_process(tmp_path):
    (tmp_path / "a.jsonl").write_text("null\n")
    with pytest.raises(BoxesError, match="JSON lines are one object a line, and one is null"):
        read_boxes(Location(str(tmp_path / "a.jsonl")))


def test_an_evaluation_keeps_the_first_numbers_of_a_shard(location):
    run = open_or_create(location, {"fingerprint_of": {"a": 1}})
    evaluation = open_or_create_evaluation(run, {"methods": {"random": {}}})
    first, second = (
        pa.Table.from_pylist(
            [{"row": row, "image_id": "a", "target": 0, "method": "m", "metric": "drop"}],
            schema=numbers(),
        )
        for row in (1, 2)
    )
    assert evaluation.publish(3, Part(first, {7: "missing: é"}))
    assert not evaluation.publish(3, Part(second, {}))
    assert evaluation.committed() == {3}
    assert evaluation.read(3).numbers.to_pylist() == first.to_pylist()
    assert evaluation.read(3).left_out == {7: "missing: é"}
    again = open_or_create_evaluation(run, {"methods": {"random": {}}})
    other = open_or_create_evaluation(run, {"methods": {"center": {}}})
    assert again.committed() == {3}
    assert other.committed() == set()
