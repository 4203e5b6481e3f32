"""Stretches of a manifest's rows: any of them, in any order, and no other bytes than theirs."""

import io
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.row_reader
from storage.locations import Location, StorageUnavailable
from storage.manifests import read_manifest
from storage.row_reader import RowReader, read_rows
from storage.rows import RowFile, RowSource

ROWS = 1000
NAMES = {"image_id": "uri", "uri": "uri", "label": "label"}
WHOLE = pa.table(
    {
        "uri": [f"/{number:04d}.jpg" for number in range(ROWS)],
        "label": pa.array([f"c{number % 7}" for number in range(ROWS)]).dictionary_encode(),
    }
)


def parquet(table: pa.Table, rows_of_a_group: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows_of_a_group)
    return sink.getvalue()


@pytest.fixture(params=[7, 64, ROWS])
def source(request, location: Location, monkeypatch: pytest.MonkeyPatch) -> RowSource:
    """Two files, in row groups that hold less, about as much and more than is held at a time."""
    monkeypatch.setattr(storage.row_reader, "BATCH_ROWS", 50)
    monkeypatch.setattr(storage.row_reader, "BUFFER_BYTES", 256)
    for name, part in (("a", WHOLE.slice(0, 600)), ("b", WHOLE.slice(600))):
        location.child("list", f"{name}.parquet").create(parquet(part, request.param))
    return read_manifest(location.child("list")).source(location)


def expected(start: int, stop: int) -> list[dict[str, str]]:
    return [
        {"image_id": row["uri"], "uri": row["uri"], "label": row["label"]}
        for row in WHOLE.slice(start, stop - start).to_pylist()
    ]


def test_a_stretch_may_lie_in_several_groups_and_files(source):
    for start, stop in ((0, 1), (0, 64), (63, 65), (64, 128), (130, 700), (990, 1000), (0, 1000)):
        assert read_rows(source, start, stop).to_pylist() == expected(start, stop)
    for start, stop in ((5, 5), (-1, 3), (990, 1001)):
        with pytest.raises(ValueError, match=f"rows {start} to {stop} .*, of 1000"):
            read_rows(source, start, stop)


def test_stretches_may_be_read_in_any_order(source):
    random = np.random.default_rng(0)
    onwards = list(pairwise([0, 3, 50, 51, 149, 150, 420, 590, 610, 1000]))
    anywhere = [sorted(random.choice(ROWS, 2, replace=False).tolist()) for _ in range(40)]
    with closing(RowReader(source)) as reader:
        for start, stop in (*onwards, *anywhere, (0, 5), (0, 5), (7, 9), (2, 4)):
            assert reader.read(start, stop).to_pylist() == expected(start, stop)
        reader.close()
        assert reader.read(3, 5).to_pylist() == expected(3, 5)


def test_a_small_group_needs_no_other_bytes(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(WHOLE, sink, row_group_size=500, use_dictionary=False)
    data = bytearray(sink.getvalue())
    footer = pq.read_metadata(io.BytesIO(data)).row_group(1).column(0)
    start = footer.data_page_offset
    data[start : start + footer.total_compressed_size] = bytes(footer.total_compressed_size)
    place = Location(str(tmp_path / "damaged.parquet"))
    place.create(bytes(data))
    with closing(RowReader(RowSource((RowFile(place, ROWS),), NAMES))) as reader:
        assert reader.read(0, 500).to_pylist() == expected(0, 500)
        for _ in range(2):  # what was damaged stays so, and hurts nothing else
            with pytest.raises((StorageUnavailable, ValueError), match="damaged"):
                reader.read(0, 501)
            assert reader.read(20, 500).to_pylist() == expected(20, 500)


class Counted(io.BytesIO):
    """Counts the bytes that are read of it."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


class CountedFile(RowFile):
    """A file in memory that keeps the streams that were opened of it."""

    def open(self) -> Counted:
        opened = Counted(self.data)
        STREAMS.append(opened)
        return opened


STREAMS: list[Counted] = []


def test_a_large_group_is_read_once_and_never_held(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage.row_reader, "BUFFER_BYTES", 2**20)
    # Nothing that compresses: what is fetched counts.
    random = np.random.default_rng(0).bytes(32 * 2**18).hex(" ", 32).split()
    data = parquet(pa.table({"uri": random}), 2**18)
    place = Location(str(tmp_path / "list.parquet"))
    source = RowSource((CountedFile(place, len(random), data),), {"image_id": "uri", "uri": "uri"})
    STREAMS.clear()
    pool, held = pa.default_memory_pool(), []
    before = pool.bytes_allocated()
    with closing(RowReader(source)) as reader:
        first = reader.read(0, 4096)
        (stream,) = STREAMS
        assert stream.read_bytes < len(data) / 5
        assert first["uri"][4095].as_py().endswith(random[4095])
        del first
        for start in range(4096, len(random), 4096):
            table = reader.read(start, start + 4096)
            held.append(pool.bytes_allocated() - before)
        assert table["uri"][4095].as_py().endswith(random[-1])
    assert len(STREAMS) == 1
    assert stream.read_bytes < 1.1 * len(data)
    assert max(held) < len(data) / 2


def test_a_list_that_changed_since_the_run_was_planned_is_refused(tmp_path: Path) -> None:
    place = Location(str(tmp_path / "m.parquet"))
    place.create(parquet(WHOLE.slice(0, 2), 2))
    rows = read_manifest(place).source(place)
    place.replace(parquet(WHOLE.slice(0, 3), 3))
    with pytest.raises(ValueError, match=r"has 3 rows and had 2 when the run was planned"):
        read_rows(rows, 0, 2)


def test_a_list_that_changes_between_two_stretches_gives_its_old_rows_or_none(source):
    file = source.files[0]
    with closing(RowReader(source)) as reader:
        assert reader.read(0, 3).to_pylist() == expected(0, 3)
        file.location.replace(parquet(WHOLE.slice(100, file.rows + 1), 100))
        found = None
        with suppress(ValueError):  # a store refuses what is not the object that was opened
            found = reader.read(3, 600).to_pylist()
    assert found == expected(3, 600) or (found is None and not file.location.is_local)
