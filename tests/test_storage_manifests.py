"""Folders, Parquet and CSV become the same three columns, or an error that says what to change."""

import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.columns import ColumnNames
from storage.locations import Location
from storage.manifests import Manifest, ManifestError, read_folder, read_manifest
from storage.row_reader import read_rows
from storage.selection import Selection


def parquet(columns: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def table_of(manifest: Manifest, stored: Location) -> pa.Table:
    """All rows, as the replicas of a run read them."""
    if manifest.data is not None:
        stored.replace(manifest.data)
    return read_rows(manifest.source(stored), 0, manifest.rows)


def manifest_of(location: Location, columns: dict[str, Any]) -> pa.Table:
    location.child("m.parquet").replace(parquet(columns))
    return table_of(read_manifest(location.child("m.parquet")), location.child("stored"))


def refusal(location: Location, columns: dict[str, Any]) -> str:
    with pytest.raises(ManifestError) as caught:
        manifest_of(location, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_classes_is_sorted_and_labelled(location: Location) -> None:
    names = ["dog/b.JPG", "dog/a.png", "cat/deep/c.webp", "Z.jpeg", "notes.txt", ".hidden/x.jpg"]
    for name in (*names, "cat/._d.jpg", "__MACOSX/cat/e.jpg", "ä/f.ppm"):
        location.child(name).create(b"x")
    manifest = read_folder(location)
    table = table_of(manifest, location.child("stored"))
    ids = ["Z.jpeg", "cat/deep/c.webp", "dog/a.png", "dog/b.JPG", "ä/f.ppm"]
    assert table.column("image_id").to_pylist() == ids
    assert table.column("uri").to_pylist() == [f"{location.url}/{name}" for name in ids]
    assert table.column("label").to_pylist() == [None, "cat", "dog", "dog", "ä"]
    assert manifest.ignored == 1


def test_a_flat_folder_has_no_labels(location: Location) -> None:
    location.child("a.jpg").create(b"x")
    table = table_of(read_folder(location), location.child("stored"))
    assert table.schema.field("label").type == pa.string()
    assert table.column("label").to_pylist() == [None]


def test_folders_without_images_say_what_was_there(location: Location) -> None:
    with pytest.raises(ManifestError, match=r"cannot list the images' folder: .*absent"):
        read_folder(location.child("absent"))
    location.child("a.txt").create(b"x")
    location.child("b.txt").create(b"x")
    with pytest.raises(ManifestError, match=r"found 2 files, none with an image ext.*\.jpg \.jpeg"):
        read_folder(location)
    with pytest.raises(ManifestError, match=r"an object, not a folder|Not a directory"):
        read_folder(location.child("a.txt"))


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="found 0 files"):
        read_folder(Location(str(tmp_path)))


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"x")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "kitten").symlink_to(tmp_path / "cat")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    place = Location(str(tmp_path))
    table = table_of(read_folder(place), place.child("stored"))
    ids = ["cat/a.jpg", "gone.jpg", "kitten/a.jpg"]
    assert table.column("image_id").to_pylist() == ids


def test_a_name_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"1 file names are no UTF-8: rename b'caf\\xe9\.jpg'"):
        read_folder(Location(str(tmp_path)))


def test_the_same_rows_have_the_same_digest_from_any_source(location: Location) -> None:
    for name in ("cat/a.jpg", "dog/b.jpg"):
        location.child(name).create(b"x")
    folder = read_folder(location)
    rows = {"image_id": ["cat/a.jpg", "dog/b.jpg"], "uri": ["cat/a.jpg", "./x/../dog/b.jpg"]}
    labels = ["cat", "dog"]
    other = pa.array(labels).dictionary_encode()
    large = pa.array(rows["uri"], pa.large_string())
    location.child("m.parquet").create(parquet({**rows, "uri": large, "label": other, "z": [1, 2]}))
    lines = [",".join(row) for row in zip(*rows.values(), labels, strict=True)]
    location.child("m.csv").create("\r\n".join(["image_id,uri,label", *lines]).encode())
    location.child("manifest.parquet").create(folder.data)
    digests = [read_manifest(location.child(n)).digest for n in ("m.parquet", "m.csv")]
    assert digests == [folder.digest] * 2
    again = read_manifest(location.child("manifest.parquet"))
    assert (again.digest, again.data) == (folder.digest, None)
    location.child("dog/c.jpg").create(b"x")
    assert read_folder(location).digest != folder.digest


def test_columns_may_have_other_names_but_only_one_of_them(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    for name in ("path", "image", "file", "filename", "file_name", "url", "URI"):
        table = manifest_of(place, {name: ["/a.jpg"], "category": ["x"], "Id": [7]})
        assert table.to_pylist() == [{"image_id": "7", "uri": "/a.jpg", "label": "x"}]
    table = manifest_of(place, {"uri": ["/a.jpg"], "path": ["/b.jpg"]})
    assert table.column("uri").to_pylist() == ["/a.jpg"]
    assert "several columns for uri: name exactly one uri" in refusal(
        place, {"path": ["a"], "url": ["b"]}
    )
    message = refusal(place, {"picture": ["a"], "label": ["b"]})
    assert "no column for uri" in message
    assert "columns found: picture, label" in message
    assert "it must hold text" in refusal(place, {"uri": [1]})


def test_columns_that_are_there_twice_are_refused_where_they_are_meant(tmp_path: Path) -> None:
    twice = [pa.array(["/a.jpg"]), pa.array(["x"]), pa.array(["y"])]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(twice, ["uri", "x", "x"]), sink)
    place = Location(str(tmp_path / "m.parquet"))
    place.create(sink.getvalue())
    assert read_manifest(place).rows == 1
    with pytest.raises(ManifestError, match="several columns are called 'x': rename all but one"):
        read_manifest(place, ColumnNames(uri="x"))
    assert read_manifest(place, selection=Selection(where="uri <> 'x'")).rows == 1
    with pytest.raises(ManifestError, match='Referenced column "x" not found'):
        read_manifest(place, selection=Selection(where="x = 'x'"))


def test_texts_may_be_views(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    views = {"uri": pa.array(["/a", "/b"], pa.string_view()), "label": pa.array(["x", "y"])}
    assert manifest_of(place, views).column("uri").to_pylist() == ["/a", "/b"]
    listed = read_manifest(place.child("m.parquet"), selection=Selection(where="label = 'y'"))
    assert table_of(listed, place.child("stored")).column("uri").to_pylist() == ["/b"]


@pytest.mark.parametrize("column", ["uri", "label", "image_id"])
def test_texts_that_are_no_utf8_are_refused(tmp_path: Path, column: str) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\x80.jpg"]).buffers())
    message = refusal(Location(str(tmp_path)), {"uri": ["/a.jpg"], column: bad})
    assert f"column {column} holds texts that are no UTF-8: " in message
    line = b'{"uri": "/a.jpg"}\n{"uri": "/b.jpg", "%s": "\x80"}\n' % column.encode()
    (tmp_path / "m.jsonl").write_bytes(line)
    with pytest.raises(ManifestError):
        read_manifest(Location(str(tmp_path / "m.jsonl")))


def test_relative_uris_start_at_the_manifest(location: Location) -> None:
    uris = ["a.jpg", "s3://elsewhere/b.jpg", "/c.jpg", "../d.jpg", None, "~/e.jpg", "x?.jpg"]
    table = manifest_of(location.child("lists"), {"uri": uris, "id": list(range(7))})
    assert table.column("uri").to_pylist() == [
        f"{location.url}/lists/a.jpg",
        "s3://elsewhere/b.jpg",
        "/c.jpg",
        f"{location.url}/d.jpg",
        None,
        "~/e.jpg",
        f"{location.url}/lists/x?.jpg",
    ]


def test_ids_are_unique_and_there(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    message = refusal(place, {"uri": ["a", "b", "a", "b", "c"]})
    assert "2 image_ids occur more than once: the first are ['a', 'b']" in message
    message = refusal(place, {"uri": ["a", "b", "c"], "image_id": ["x", None, None]})
    assert "2 rows have no image_id: the first are [1, 2]" in message


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (pa.array([3, None], pa.int8()), pa.int64(), [3, None]),
        (pa.array([3.0, float("nan")]), pa.int64(), [3, None]),
        (pa.array([3.0, None]), pa.int64(), [3, None]),
        (pa.array([3.0, None], pa.float16()), pa.int64(), [3, None]),
        (pa.array(["3", None]), pa.string(), ["3", None]),
        (pa.nulls(2), pa.string(), [None, None]),
        (pa.array(["a", "a"]).dictionary_encode(), pa.string(), ["a", "a"]),
    ],
)
def test_labels_are_text_or_integers(
    tmp_path: Path, labels: pa.Array, kind: pa.DataType, expected: list[Any]
) -> None:
    label = manifest_of(Location(str(tmp_path)), {"uri": ["a", "b"], "label": labels})["label"]
    assert label.type == kind
    assert label.to_pylist() == expected


def test_other_labels_are_refused(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    assert "holds fractions" in refusal(place, {"uri": ["a"], "label": [1.5]})
    assert "of type bool: labels are text" in refusal(place, {"uri": ["a"], "label": [True]})
    huge = pa.array([2**63], pa.uint64())
    assert "not in range" in refusal(place, {"uri": ["a"], "label": huge})


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "2", ""], [1, 2, None]),
        (["1.0", "", "2.0"], [1, None, 2]),
        (["001", "002", "x"], ["001", "002", "x"]),
        (["007", "1", "2"], ["007", "1", "2"]),
        (["true", "NA", "null"], ["true", "NA", "null"]),
        (["", "", ""], [None, None, None]),
    ],
)
def test_labels_of_a_csv_do_not_hang_on_guesses(
    tmp_path: Path, texts: list[str], expected: list[Any]
) -> None:
    lines = [f"00{number},{text}" for number, text in enumerate(texts)]
    (tmp_path / "m.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    manifest = read_manifest(Location(str(tmp_path / "m.csv")))
    table = table_of(manifest, Location(str(tmp_path / "stored")))
    assert table.column("image_id").to_pylist() == ["000", "001", "002"]
    assert table.column("label").to_pylist() == expected


def test_a_csv_may_quote_commas_and_line_ends_and_start_with_a_mark(tmp_path: Path) -> None:
    text = '\ufeffuri,note,label\n"/a,b.jpg","two\nlines",cat\n/c.jpg,,"dog ""x"""\n'
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    manifest = read_manifest(Location(str(tmp_path / "m.csv")))
    table = table_of(manifest, Location(str(tmp_path / "stored")))
    assert table.column("uri").to_pylist() == ["/a,b.jpg", "/c.jpg"]
    assert table.column("label").to_pylist() == ["cat", 'dog "x"']


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.parquet", b"uri,label\na,b\n", "cannot read the manifest: .*m.parquet: Parquet magic"),
        ("m.parquet", parquet({"uri": ["a"] * 9})[:-40] + b"x" * 32 + b"PAR1", "cannot read"),
        ("m.csv", b"uri,label\na,b,c\n", "Expected 2 columns, got 3"),
        ("m.csv", b"uri\n\xff\xfe.jpg\n", "invalid UTF8|invalid UTF-8"),
        ("m.csv", b"", "Empty CSV file"),
        ("m.csv", b"uri,label\n", "has no rows"),
        ("m.txt", b"x", r"a file that ends in one of \.csv, .*\.tar, not '\.txt'"),
    ],
)
def test_what_cannot_be_read_says_why(
    location: Location, name: str, data: bytes, message: str
) -> None:
    location.child(name).replace(data)
    with pytest.raises(ManifestError, match=message):
        read_manifest(location.child(name))


def test_a_missing_manifest_is_bad_input(location: Location) -> None:
    with pytest.raises(ManifestError, match=r"cannot read the manifest: .*absent\.csv"):
        read_manifest(location.child("absent.csv"))


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_million_rows_with_a_million_labels_take_seconds(
    tmp_path: Path, kind: pa.DataType
) -> None:
    numbers = pa.array(np.arange(1_000_000))
    uris = pa.compute.binary_join_element_wise("s3://b/", numbers.cast(pa.string()), "")
    started = time.monotonic()
    table = manifest_of(Location(str(tmp_path)), {"uri": uris, "label": numbers.cast(kind)})
    assert len(table) == 1_000_000
    assert table.schema.field("label").type == kind
    assert time.monotonic() - started < 20


def test_the_photographs_are_a_folder_of_classes(photos: Path) -> None:
    assert set(read_folder(Location(str(photos))).labels) == set(os.listdir(photos))
