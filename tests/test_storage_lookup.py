"""Images are found by their ids in lists of any shape, and those alike are told."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.rows
from storage.locations import Location
from storage.lookup import alike, rows_of_ids
from storage.names import file_name
from storage.rows import RowFile, RowSource, snapshot
from storage.snapshots import encode

IDS = [f"class {n % 7}/{n:05d}.jpg" for n in range(1000)]


def table(ids: list[str]) -> pa.Table:
    columns = {"image_id": ids, "uri": [f"/{each}" for each in ids], "label": [None] * len(ids)}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


@pytest.fixture(params=[1, 30, 1000])
def source(request, location: Location, monkeypatch: pytest.MonkeyPatch) -> RowSource:
    """A list of two files in row groups of 1, 30 or 1000 rows, read at most 64 rows at once."""
    monkeypatch.setattr(storage.rows, "ROWS_AT_ONCE", 64)
    files = []
    for name, ids in (("a", IDS[:700]), ("b", IDS[700:])):
        sink = pa.BufferOutputStream()
        pq.write_table(table(ids), sink, row_group_size=request.param)
        place = location.child(f"{name}.parquet")
        place.create(sink.getvalue().to_pybytes())
        files.append(RowFile(place, len(ids)))
    return RowSource(tuple(files), {name: name for name in ("image_id", "uri", "label")})


def test_rows_are_found_wherever_they_lie(source):
    wanted = [IDS[999], IDS[0], "nowhere", IDS[63], IDS[64], IDS[699], IDS[700]]
    found = rows_of_ids(source, wanted)
    assert found == {IDS[n]: n for n in (999, 0, 63, 64, 699, 700)}
    assert pa.concat_tables(source.tables())["image_id"].to_pylist() == IDS


def test_ids_alike_are_those_that_hold_the_text_and_then_those_of_few_other_letters(source):
    near = alike(source, ["00700.jpg", "class 0/0070.jpg", "qqq", "", "'); DROP TABLE x; --"])
    assert near["00700.jpg"] == ["class 0/00700.jpg"]
    assert near["class 0/0070.jpg"][0] in ("class 0/00700.jpg", "class 0/00070.jpg")
    assert len(near["class 0/0070.jpg"]) == 3
    assert near["qqq"] == near[""] == near["'); DROP TABLE x; --"] == []


def largest_of(rows: int, folder: Path) -> int:
    """Bytes that are held at most while the last of so many rows is looked for."""
    # Nothing that compresses: what is fetched counts, too.
    ids = np.random.default_rng(0).bytes(16 * rows).hex(" ", 16).split()
    place = Location(str(folder / f"{rows}.parquet"))
    place.create(encode(iter([table(ids)])))
    pool, held = pa.default_memory_pool(), []
    before = pool.bytes_allocated()

    class Watched(RowSource):
        def tables(self):
            for each in super().tables():
                held.append(pool.bytes_allocated() - before)
                yield each

    of_snapshot = snapshot(RowFile(place, rows), ())
    tracemalloc.start()  # what a stream reads is Python's
    found = rows_of_ids(Watched(of_snapshot.files, of_snapshot.names), [ids[-1]])
    _, read = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == {ids[-1]: rows - 1}
    return read + max(held)


def test_memory_does_not_grow_with_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage.rows, "ROWS_AT_ONCE", 2**14)
    assert largest_of(2**19, tmp_path) < 1.5 * largest_of(2**17, tmp_path)


def test_a_file_name_is_short_its_own_and_no_folder():
    names = ["a/b", "a%2Fb", "..", ".", "", "ü" * 60, "ü" * 61, "a\nb", "a\\b", "a@b", "A b"]
    files = [file_name(name, 60) for name in names]
    assert len(set(files)) == len(names)
    assert max(map(len, files)) <= 60
    assert not any(set(name) & set("/\\\n@<>\"'") or name in (".", "..") for name in files)
    assert file_name("tench, Tinca tinca") == "tench, Tinca tinca"
