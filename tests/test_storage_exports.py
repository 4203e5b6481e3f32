"""Sorting beyond memory equals sorting in memory; an export is of one run's parts, or refused."""

import io
import json
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from threading import Event, Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import schema
from storage.exports import Export, ExportedFile, ExportError, Layout, encode, entries, layout
from storage.locations import Location, StorageUnavailable
from storage.parts import Parts, PartsDamaged, in_order
from storage.runs import Run, open_or_create
from storage.sorting import sort_rows

GRID = (2, 3)
NOBODY = 10**9


def table(keys: list[int | None], first: int = 0) -> pa.Table:
    """Rows with these targets, numbered on from `first`."""
    rows = [
        {
            "run": "r",
            "row": first + i,
            "image_id": f"image {first + i}",
            "status": "ok" if key is not None else "missing",
            "target": key,
            "target_name": None if key is None else f"class {key}",
            "target_rank": None if key is None else 0,
            "saliency": None if key is None else np.full(6, (first + i) / 1024, np.float16),
        }
        for i, key in enumerate(keys)
    ]
    return pa.Table.from_pylist(rows, schema=schema.explanations(GRID))


def drawn(count: int, keys: int, seed: int = 0) -> list[int | None]:
    """Random keys, an eighth of them null."""
    random = np.random.default_rng(seed)
    values = random.integers(keys, size=count).tolist()
    lost = random.random(count) < 1 / 8
    return [None if gone else key for key, gone in zip(values, lost, strict=True)]


def cut(whole: pa.Table, sizes: list[int]) -> list[pa.Table]:
    borders = np.cumsum([0, *sizes])
    return [whole.slice(a, b - a) for a, b in pairwise(borders)]


@pytest.mark.parametrize("block", [1, 70, 150, 10_000])
@pytest.mark.parametrize(
    "keys",
    [drawn(700, 5), drawn(700, 400, 1), [3] * 700, [None] * 700, sorted(range(700), reverse=True)],
    ids=["few", "many", "one", "none", "distinct"],
)
def test_every_range_of_the_order_is_read_as_if_all_were_sorted_in_memory(tmp_path, keys, block):
    whole = table(keys)
    rows = sort_rows(cut(whole, [100, 1, 0, 299, 300]), "target", tmp_path, block)
    order = sorted(range(700), key=lambda i: NOBODY if keys[i] is None else keys[i])
    expected = whole.take(pa.array(order)).replace_schema_metadata(None)
    assert rows.rows == 700
    assert len(rows.blocks) == {1: 4, 70: 3, 150: 2, 10_000: 1}[block]
    borders = [0, 1, 2, 130, 256, 257, 300, 613, 699, 700]
    for start, stop in [*pairwise(borders), (0, 700), (50, 650)]:
        assert rows.read(range(start, stop)).equals(expected.slice(start, stop - start))
    assert rows.read(range(0, 700)).schema.equals(whole.schema)
    assert rows.schema.metadata is None


def test_a_column_that_came_later_is_null_in_the_rows_without_it(tmp_path):
    old, new = table([1, 0, 1]), table([0, 1, 0], first=3)
    column = pa.field("novelty", pa.float32(), metadata={"comment": "how odd"})
    new = new.append_column(column, pa.array([0.5, 0.25, 0.125], pa.float32()))
    for block in (1, 100):
        folder = tmp_path / str(block)
        folder.mkdir()
        rows = sort_rows([old, new], "target", folder, block)
        found = rows.read(range(2))
        assert found.column_names == [*old.column_names, "novelty"]
        assert found["row"].to_pylist() == [1, 3]
        assert found["novelty"].to_pylist() == [None, 0.5]
        assert rows.schema.field("novelty").metadata == column.metadata


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_way_out(tmp_path):
    with (
        files_of_at_most(10_000),
        pytest.raises(StorageUnavailable, match=rf"cannot spill rows to {tmp_path}: .*TMPDIR"),
    ):
        sort_rows([table(drawn(500, 5))], "target", tmp_path, 100)


def test_work_comes_back_in_order_and_never_runs_far_ahead():
    lock, started = Lock(), []
    second_done = Event()

    def work(number: int) -> int:
        with lock:
            started.append(number)
        if number == 0:
            assert second_done.wait(10)
        if number == 1:
            second_done.set()
        return number * number

    results = in_order(work, range(50), 3)
    for number in range(50):
        assert next(results) == number * number
        assert max(started) <= number + 3
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_work_is_raised_in_its_turn_and_nothing_is_begun_after_it():
    started = []

    def work(number: int) -> int:
        started.append(number)
        return 10 // (5 - number)

    with closing(in_order(work, range(1000), 2)) as results:
        assert [next(results) for _ in range(5)] == [2, 2, 3, 5, 10]
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert max(started) <= 7


@pytest.fixture
def run(location: Location) -> Run:
    """40 rows in parts of 16, 16 and 8."""
    run = open_or_create(location.child("run"), {"fingerprint_of": {"a": 1}})
    for index, part in enumerate(cut(table(drawn(40, 3)), [16, 16, 8])):
        metadata = {"run": run.id, "device": "cpu", "shard": str(index)}
        run.publish(index, schema.encode_parquet(part, metadata))
    return run


def test_parts_are_read_in_order_and_known_by_the_digest_of_the_summary(run):
    parts = Parts(run)
    tables = list(parts.read(2))
    assert [t.num_rows for t in tables] == [16, 16, 8]
    assert pa.concat_tables(tables)["row"].to_pylist() == list(range(40))
    digests = [run.read_part(i).schema.metadata[b"content_digest"] for i in range(3)]
    assert parts.digest == sha256(b"".join(digests)).hexdigest()
    same = {b"run": run.id.encode(), b"device": b"cpu", b"grid": b"2x3", b"schema_version": b"1"}
    assert parts.metadata == same


def test_a_part_with_other_rows_than_it_says_is_refused(run):
    part = run.read_part(1)
    forged = part.set_column(1, part.schema.field("row"), pa.array(range(16, 32), pa.int64()))
    assert forged.equals(part)
    twisted = part.set_column(8, part.schema.field("width"), pa.array([7] * 16, pa.int32()))
    sink = io.BytesIO()
    pq.write_table(twisted, sink)
    run.part(1).replace(sink.getvalue())
    with pytest.raises(PartsDamaged, match=r"part-00000001\.parquet are not those that its"):
        list(Parts(run).read(2))


def test_rows_that_step_back_are_refused(run):
    run.publish(3, run.part(1).read())
    with pytest.raises(PartsDamaged, match="around row 16, or repeat rows"):
        list(Parts(run).read(1))


@pytest.mark.parametrize(
    ("ranks", "is_in_order"), [([0, 1, 0], True), ([0, 0, 1], False), ([1, 0, 2], False)]
)
def test_targets_of_an_image_come_by_rank_and_once_each(run, ranks, is_in_order):
    names = ["row", "target_rank"]
    rows = [{"run": "r", "image_id": "a", "status": "ok"} | dict(zip(names, pair, strict=True))
            for pair in zip([50, 50, 50 + (ranks[2] == 0)], ranks, strict=True)]  # fmt: skip
    part = pa.Table.from_pylist(rows, schema=schema.explanations(GRID))
    run.publish(3, schema.encode_parquet(part, {}))
    if is_in_order:
        assert len(list(Parts(run).read(1))) == 4
    else:
        with pytest.raises(PartsDamaged, match="around row 50, or repeat rows"):
            list(Parts(run).read(1))


def test_what_is_no_parquet_file_is_no_part(run):
    run.part(1).replace(b"nonsense")
    with pytest.raises(PartsDamaged, match=r"cannot read a part: .*part-00000001"):
        list(Parts(run).read(1))


def test_a_run_without_parts_is_refused(location):
    run = open_or_create(location, {"fingerprint_of": {"a": 1}})
    with pytest.raises(PartsDamaged, match="has no parts"):
        list(Parts(run).read(1))


@pytest.fixture
def export(location: Location) -> Export:
    return Export(location.child("copy"), "run id", "digest", "target", Layout(20, 5))


def sorted_table() -> pa.Table:
    return table([0, 0, 1, 1, 2, 5, None])


def test_an_export_is_begun_in_an_empty_place_and_complete_with_its_last_file(export):
    assert export.begin() is None
    file = export.write(0, sorted_table(), {b"device": b"cpu"})
    assert file == ExportedFile("target-00000.parquet", 7, 0, None)
    assert export.begin() is None
    said = export.finish([file])
    assert said == export.begin() == json.loads(export.root.child("export.json").read())
    assert said["rows"] == 7
    assert said["files"] == [{"name": file.name, "rows": 7, "first": 0, "last": None}]
    assert entries(export.root).keys() == {"explanations", "export.json"}
    with export.files.child(file.name).open() as stream:
        found = pq.read_table(stream)
    assert found.equals(sorted_table())
    assert found.schema.equals(sorted_table().schema, check_metadata=False)
    for name in found.column_names:
        assert found.schema.field(name).metadata[b"comment"]
    metadata = {key.decode(): value.decode() for key, value in found.schema.metadata.items()}
    digest = metadata.pop("content_digest")
    assert digest == schema.table_digest(sorted_table())
    assert metadata == {**export.identity, "device": "cpu"}
    assert metadata["sorted_by"] == "target, row, target_rank"


def test_a_file_is_never_written_twice(export):
    first = export.write(0, sorted_table(), {})
    data = export.files.child(first.name).read()
    assert export.write(0, sorted_table(), {b"device": b"another"}) == first
    assert export.files.child(first.name).read() == data
    with pytest.raises(ExportError, match=r"target-00000\.parquet holds other rows than this"):
        export.write(0, table([0, 0, 1]), {})
    assert export.files.child(first.name).read() == data


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"run": "another"}, ["run: run id there, another here"]),
        ({"parts_digest": "other"}, ["parts_digest: digest there, other here"]),
        ({"layout": Layout(30, 5)}, ["rows_per_file: 20 there, 30 here"]),
    ],
)
def test_a_place_of_another_export_is_refused_begun_or_complete(export, change, lines):
    file = export.write(0, sorted_table(), {})
    other = replace(export, **change)
    for place in (export.files.child(file.name), export.root):
        with pytest.raises(ExportError) as caught:
            other.begin()
        first, *told, last = str(caught.value).splitlines()
        assert first == f"{place} is of another export than this one:"
        assert [line.strip() for line in told] == lines
        assert last == "name an empty --out"
        export.finish([file])


@pytest.mark.parametrize(
    "name", ["notes.txt", "run.json", "explanations/part-00000000.parquet", "deep/below/a.txt"]
)
def test_a_place_of_anything_else_is_refused(export, name):
    export.root.child(name).create(b"precious")
    stranger = name.removeprefix("explanations/").partition("/")[0]
    with pytest.raises(ExportError, match=rf"is not empty: it holds {stranger}; name an empty"):
        export.begin()


def test_a_place_with_another_sort_is_refused(export):
    export.write(0, sorted_table(), {})
    with pytest.raises(ExportError, match=r"is not empty: it holds target-00000\.parquet"):
        replace(export, key="label").begin()


@pytest.mark.parametrize("content", [b"nonsense", b"{}", b"[1]"])
def test_files_that_cannot_be_read_are_not_of_this_export(export, content):
    export.files.child("target-00000.parquet").create(content)
    with pytest.raises(ExportError, match="run: nothing there, run id here"):
        export.begin()
    export.root.child("export.json").create(content)
    with pytest.raises(ExportError, match="run: nothing there, run id here"):
        export.begin()


def test_a_file_too_many_keeps_an_export_from_being_complete(export):
    files = [export.write(number, sorted_table(), {}) for number in range(3)]
    with pytest.raises(ExportError, match=r"holds target-00001\.parquet and 1 more besides"):
        export.finish(files[:1])
    assert "export.json" not in entries(export.root)


def test_entries_name_files_and_folders_with_sizes_but_nothing_hidden(location):
    assert entries(location) == {}
    location.child("b.txt").create(b"four")
    location.child("a/below.txt").create(b"x")
    location.child(".hidden").create(b"x")
    found = entries(location)
    assert list(found) == ["a", "b.txt"]
    assert found["b.txt"] == 4
    with pytest.raises(NotADirectoryError, match=r"b\.txt is an object, not a folder"):
        entries(location.child("b.txt"))


def test_files_are_encoded_as_parts_are_in_groups_that_statistics_tell_apart():
    rows = table([0] * 7 + [1] * 6 + [4] * 2 + [None] * 3)
    data = encode(rows, "target", 5)
    assert data == encode(rows, "target", 5)
    footer = pq.read_metadata(io.BytesIO(data))
    part = pq.read_metadata(io.BytesIO(schema.encode_parquet(rows, {}))).row_group(0)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    assert [group.num_rows for group in groups] == [5, 5, 5, 3]
    target = rows.schema.get_field_index("target")
    found = [group.column(target).statistics for group in groups]
    assert [(f.min, f.max) for f in found[:3]] == [(0, 0), (0, 1), (1, 4)]
    assert found[3].null_count == 3
    for group in groups:
        names = [footer.schema.column(s.column_index).name for s in group.sorting_columns]
        assert names == ["target", "row", "target_rank"]
        assert not any(s.descending or s.nulls_first for s in group.sorting_columns)
        for number in range(group.num_columns):
            column, in_part = group.column(number), part.column(number)
            is_map = column.path_in_schema.startswith("saliency")
            assert column.compression == "ZSTD"
            assert column.is_stats_set != is_map
            assert column.has_column_index != is_map
            assert column.has_offset_index
            assert column.encodings == in_part.encodings
            assert "BYTE_STREAM_SPLIT" not in column.encodings


def test_files_and_groups_are_bounded_in_bytes_whatever_the_grid():
    for grid in ((7, 7), (14, 14), (37, 37)):
        size = 2 * grid[0] * grid[1] + 300
        made = layout(grid)
        assert 127 * 2**20 < made.file * size <= 128 * 2**20
        assert 7 * 2**20 < made.group * size <= 8 * 2**20
    assert layout((10_000, 10_000)) == Layout(1, 1)
