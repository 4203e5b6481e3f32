"""JSON lines, Parquet with images inside and tar shards become manifest rows, and their images."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from storage.columns import ColumnNames
from storage.images import Fetched, Reading, fetch
from storage.json_lines import MAX_LEVELS
from storage.locations import Location, StorageUnavailable
from storage.manifests import Manifest, ManifestError, read_manifest
from storage.row_reader import read_rows

IMAGES = [bytes([number]) * (10 + number) for number in range(10)]


def rows_of(manifest: Manifest, stored: Location) -> pa.Table:
    if manifest.data is not None:
        stored.replace(manifest.data)
    return read_rows(manifest.source(stored), 0, manifest.rows)


def fetched(manifest: Manifest, location: Location, **how: Any) -> list[Fetched]:
    return fetch(
        rows_of(manifest, location.child("stored")),
        Reading(location.options, allow_local=True, **how),
    )


def parquet(table: pa.Table, row_group_size: int = 4) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    return sink.getvalue()


def tar(members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def hugging_face(images: list[bytes | None]) -> pa.Table:
    structs = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    return pa.table({"image": structs, "label": [i % 3 for i in range(len(images))]})


def test_json_lines_are_a_list(location: Location) -> None:
    lines = [{"id": 7, "url": "a.jpg", "label": None}, {"id": 8, "url": "/b.jpg", "label": "cat"}]
    for name in ("m.jsonl", "m.ndjson"):
        location.child(name).create("\n".join(map(json.dumps, lines)).encode())
        rows = rows_of(read_manifest(location.child(name)), location.child("stored"))
        assert rows.to_pylist() == [
            {"image_id": "7", "uri": f"{location.url}/a.jpg", "label": None},
            {"image_id": "8", "uri": "/b.jpg", "label": "cat"},
        ]
    location.child("bad.jsonl").create(b'{"url": "a"}\n{"url": \n')
    with pytest.raises(ManifestError, match="JSON parse error"):
        read_manifest(location.child("bad.jsonl"))


def nested(levels: int) -> bytes:
    return b'{"uri": "/a.jpg", "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (nested(MAX_LEVELS + 1), "more than 200 levels"),
        (nested(100_000), "more than 200 levels"),
        (b'["x"' + b"\n[\n" * 100_000, "more than 200 levels"),
        (b'{"a":"\\\\"}' + b"[" * 100_000, "more than 200 levels"),
        (b"null", "one object a line, and one is null"),
        (b'{"uri":"/a.jpg"}\n null\n', "one object a line, and one is null"),
        (b'{"uri":"\\\\"}null', "one object a line, and one is null"),
    ],
)
def test_json_lines_that_would_end_the_process_are_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "m.jsonl").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read_manifest(Location(str(tmp_path / "m.jsonl")))


def test_json_lines_may_hold_brackets_and_nulls_in_their_place(tmp_path: Path) -> None:
    lines = [nested(MAX_LEVELS), b'{"uri":\n"/b.jpg", "label":\nnull}']
    lines += [
        b'{"uri": "/' + text + b'.jpg"}' for text in (b'\\"' + b"[" * 900, b"null", b"]}\\\\")
    ]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines))
    rows = rows_of(read_manifest(Location(str(tmp_path / "m.jsonl"))), Location(f"{tmp_path}/s"))
    names = ["/a.jpg", "/b.jpg", '/"' + "[" * 900 + ".jpg", "/null.jpg", "/]}\\.jpg"]
    assert rows["uri"].to_pylist() == names


@pytest.mark.parametrize("column", ["struct", "binary", "large"])
def test_a_parquet_file_may_hold_the_images(location: Location, column: str) -> None:
    table = hugging_face([*IMAGES])
    if column != "struct":
        kind = pa.binary() if column == "binary" else pa.large_binary()
        table = table.set_column(0, "image", pa.array(IMAGES, kind))
    location.child("data", "train.parquet").create(parquet(table))
    manifest = read_manifest(location.child("data"))
    rows = rows_of(manifest, location.child("stored"))
    assert rows["image_id"].to_pylist() == [f"train.parquet#{i}" for i in range(10)]
    assert set(rows["uri"].to_pylist()) == {f"{location.url}/data/train.parquet"}
    assert rows["label"].to_pylist() == [i % 3 for i in range(10)]
    assert rows["row_group"].to_pylist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert rows["row_in_group"].to_pylist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert manifest.groups == ((4, 4, 2),)
    assert [each.data for each in fetched(manifest, location)] == IMAGES


def test_images_of_a_damaged_row_group_are_undecodable_and_all_others_are_read(
    location: Location,
) -> None:
    path = location.child("data", "train.parquet")
    path.create(parquet(hugging_face([*IMAGES])))
    manifest = read_manifest(location.child("data"))
    data = bytearray(path.read())
    layout = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1)
    (pixels,) = (
        layout.column(i)
        for i in range(layout.num_columns)
        if layout.column(i).path_in_schema == "image.bytes"
    )
    first_page = pixels.dictionary_page_offset or pixels.data_page_offset
    data[first_page : first_page + 8] = b"\xff" * 8
    path.delete()
    path.create(bytes(data))
    got = fetched(manifest, location)
    assert [each.data for each in got if each.status == "ok"] == [*IMAGES[:4], *IMAGES[8:]]
    assert [each.status for each in got[4:8]] == ["undecodable"] * 4
    assert got[4].error.startswith("row group 1 of the file is damaged: ")
    assert "\n" not in got[4].error


class Forbidding(MemoryFileSystem):
    """Gives footers, and refuses the rest as gcsfs does: by an OSError like Arrow's for damage."""

    protocol = "adl"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("adl://"))

    def _open(self, path: str, mode: str = "rb", **how: Any) -> Any:
        stream = io.BytesIO(self.cat_file(path))

        class Stream(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if mode == "rb" and self.tell() < 2_000_000:
                    raise OSError("Forbidden: no access any more")
                return super().read(size)

        return Stream(stream.getvalue())


def test_a_store_that_fails_while_a_row_group_is_read_makes_no_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(_registry, "adl", Forbidding)
    images: list[bytes | None] = [random.Random(i).randbytes(1_000_000) for i in range(4)]
    MemoryFileSystem().pipe_file("/f.parquet", parquet(hugging_face(images), row_group_size=2))
    rows = pa.table(
        {"uri": ["adl:///f.parquet"], "row_group": pa.array([0], pa.int32()),
         "row_in_group": pa.array([1], pa.int32())}
    )  # fmt: skip
    with pytest.raises(StorageUnavailable, match="Forbidden: no access any more"):
        fetch(rows, Reading({}, allow_local=True))


def test_columns_inside_a_struct_can_be_named(tmp_path: Path) -> None:
    place = Location(str(tmp_path / "m.parquet"))
    table = hugging_face([b"a", None]).append_column("class", pa.array(["x", "y"]))
    place.create(parquet(table))
    names = ColumnNames(uri="image", label="class", image_id="image.path")
    manifest = read_manifest(place, names)
    rows = rows_of(manifest, Location(str(tmp_path / "stored")))
    assert rows["image_id"].to_pylist() == ["0.jpg", "1.jpg"]
    assert rows["label"].to_pylist() == ["x", "y"]
    good, null = fetched(manifest, Location(str(tmp_path)), image_column="image")
    assert (good.data, null.data) == (b"a", None)
    assert (null.status, null.error) == ("missing", "the row holds no bytes of an image")
    with pytest.raises(ManifestError, match=r"no column 'clas', as --label-column has it; columns"):
        read_manifest(place, ColumnNames(label="clas"))


def test_a_tar_shard_is_samples_of_images_and_labels(location: Location) -> None:
    members = {
        "./a/0001.jpg": IMAGES[1], "./a/0001.cls": b"3\n", "./a/0001.seg.png": b"mask",
        "a/0002.JPEG": IMAGES[2], "a/0002.json": b'{"label": 4, "caption": "x"}',
        "a/0002.cls": b"5", "a/IMG.2020.png": IMAGES[3], "._x.jpg": b"", "notes.txt": b"",
        "a/" + "long" * 60 + ".webp": IMAGES[4], "a/" + "long" * 60 + ".cls": b"6",
    }  # fmt: skip
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        location.child("s.tar").replace(tar(members, kind))
        manifest = read_manifest(location.child("s.tar"))
        rows = rows_of(manifest, location.child("stored"))
        assert rows["image_id"].to_pylist() == [
            "s.tar/a/0001.jpg", "s.tar/a/0002.JPEG", "s.tar/a/IMG.2020.png",
            f"s.tar/a/{'long' * 60}.webp",
        ]  # fmt: skip
        assert rows["label"].to_pylist() == [3, 5, None, 6]
        assert set(rows["uri"].to_pylist()) == {f"{location.url}/s.tar"}
        assert [each.data for each in fetched(manifest, location)] == IMAGES[1:5]


def test_labels_of_a_tar_may_be_in_json_or_be_folders(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    place.child("folders.tar").create(tar({"cat/1.jpg": b"x", "dog/2.jpg": b"y", "3.jpg": b"z"}))
    rows = rows_of(read_manifest(place.child("folders.tar")), place.child("stored"))
    assert rows["label"].to_pylist() == ["cat", "dog", None]
    place.child("json.tar").create(tar({"1.jpg": b"x", "1.json": b'{"kind": "cat", "label": 1}'}))
    for names, label in ((ColumnNames(label="kind"), "cat"), (ColumnNames(), 1)):
        rows = rows_of(read_manifest(place.child("json.tar"), names), place.child("stored"))
        assert rows["label"].to_pylist() == [label]
    place.child("bad.tar").create(tar({"1.jpg": b"x", "1.json": b"{"}))
    with pytest.raises(ManifestError, match=r"member 1\.json is no JSON"):
        read_manifest(place.child("bad.tar"))


def test_tars_are_shards_and_neighbours_are_one_request(location: Location) -> None:
    for number in range(3):
        members = {f"{i}.jpg": IMAGES[i] for i in range(4 + number)}
        location.child("tars", f"{number}.tar").create(tar(members))
    manifest = read_manifest(location.child("tars", "*.tar"))
    assert manifest.groups == ((4,), (5,), (6,))
    assert manifest.rows == 15
    rows = rows_of(manifest, location.child("stored"))
    assert rows["image_id"].to_pylist()[4] == "1.tar/0.jpg"
    want = [*IMAGES[:4], *IMAGES[:5], *IMAGES[:6]]
    assert [each.data for each in fetched(manifest, location)] == want
    back = fetch(
        rows.take(pa.array(range(14, -1, -3))), Reading(location.options, allow_local=True)
    )
    assert [each.data for each in back] == want[14::-3]


def test_what_is_wrong_inside_a_tar_is_told(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    for name, data in (("text.tar", b"x" * 2000), ("packed.tar", b"\x1f\x8b" + b"x" * 2000)):
        place.child(name).create(data)
        with pytest.raises(ManifestError, match=r"a tar shard must be a plain, uncompressed tar"):
            read_manifest(place.child(name))
    place.child("none.tar").create(tar({"a.txt": b""}))
    with pytest.raises(ManifestError, match=r"none\.tar has no rows"):
        read_manifest(place.child("none.tar"))
    place.child("s.tar").create(tar({"0.jpg": IMAGES[0], "large.jpg": b"x" * 99, "1.jpg": b"y"}))
    first, large, last = fetched(read_manifest(place.child("s.tar")), place, max_bytes=50)
    assert [first.status, large.status, last.status] == ["ok", "too_large", "ok"]


@pytest.mark.parametrize("name", ["s.tar", "s.parquet"])
def test_a_file_of_images_that_changed_fails_the_shard_not_its_rows(
    location: Location, name: str
) -> None:
    before = tar({"a.jpg": b"aaaa", "b.jpg": b"bb"}), tar({"a.jpg": b"aaa", "b.jpg": b"bb"})
    if name == "s.parquet":
        before = parquet(hugging_face(IMAGES[:6])), parquet(hugging_face(IMAGES[:5]))
    location.child(name).create(before[0])
    manifest = read_manifest(location.child(name))
    location.child(name).replace(before[1])
    with pytest.raises(StorageUnavailable, match=r"is not as it was when the run was planned"):
        fetched(manifest, location)
    location.child(name).delete()
    assert {each.status for each in fetched(manifest, location)} == {"missing"}


def test_a_folder_of_several_kinds_or_none_is_refused(location: Location) -> None:
    location.child("mixed", "a.csv").create(b"uri\na\n")
    location.child("mixed", "b.tar").create(tar({"a.jpg": b""}))
    with pytest.raises(ManifestError, match=r"files of several kinds that list .*\(\.csv, \.tar\)"):
        read_manifest(location.child("mixed"))
    with pytest.raises(ManifestError, match=r"no file that list or hold images"):
        read_manifest(location.child("mixed", "*.parquet"))


def test_lists_in_several_folders_resolve_each_its_own_uris(location: Location) -> None:
    for name in ("x", "y"):
        location.child("lists", name, "m.csv").create(f"id,uri\n{name},1.jpg\n".encode())
    rows = rows_of(read_manifest(location.child("lists")), location.child("stored"))
    assert rows["uri"].to_pylist() == [f"{location.url}/lists/{n}/1.jpg" for n in "xy"]
    for name, column in (("a", "uri"), ("b", "path")):
        data = parquet(pa.table({column: ["/1.jpg"]}))
        location.child("other", f"{name}.parquet").create(data)
    with pytest.raises(ManifestError, match=r"has \{'uri': 'path'\}, the files before it have"):
        read_manifest(location.child("other"))
