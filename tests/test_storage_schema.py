"""Parts say what their columns mean, and DuckDB, pandas and Polars read what was written."""

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import schema
from storage.digests import table_digest, type_name

GRID = (3, 5)
COLUMNS = (
    "run row image_id uri label label_name status error width height format mode bytes has_exif "
    "jpeg_quality mean_r mean_g mean_b contrast sharpness predicted predicted_name probability "
    "target target_name target_kind target_rank target_probability saliency score_min score_max "
    "peak_row peak_col border_mass entropy"
)


def maps() -> np.ndarray:
    cells = np.random.default_rng(0).random((2, *GRID))
    return cells.astype(np.float16)


def part() -> pa.Table:
    """Three rows; the second is an image without a map."""
    names = ["a", "b", "c"]
    rows: list[dict[str, Any]] = [
        {"run": "0" * 16, "row": i, "image_id": n, "status": "ok"} for i, n in enumerate(names)
    ]
    rows[0].update(label=1, has_exif=True, probability=0.5, target_rank=0)
    rows[0]["saliency"], rows[2]["saliency"] = maps().reshape(2, -1)
    rows[1].update(status="missing", error="gone", saliency=None)
    return pa.Table.from_pylist(rows, schema=schema.explanations(GRID))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "part-00000000.parquet"
    file.write_bytes(schema.encode_parquet(part(), {"device": "cpu"}))
    return file


def test_the_columns_are_the_design_s_in_its_order() -> None:
    assert schema.explanations(GRID).names == COLUMNS.split()


@pytest.mark.parametrize("make", [schema.explanations, schema.class_heatmaps])
def test_every_column_has_a_comment_and_a_line_in_the_docs(make: Any) -> None:
    made = make(GRID)
    for field in made:
        assert field.metadata[b"comment"], field.name
    lines = schema.markdown(made).splitlines()
    assert len(lines) == len(made) + 2
    assert {line.count(" | ") for line in lines if "---" not in line} == {2}
    assert schema.grid_of(made) == GRID
    assert made.metadata[b"schema_version"] == b"1"
    assert "| `saliency` | float16[15] | " in schema.markdown(schema.explanations(GRID))


def test_pyarrow_reads_back_what_was_written(path: Path) -> None:
    table = pq.read_table(path)
    assert table.equals(part())
    assert table.schema.field("saliency").metadata[b"comment"].startswith(b"map on the token grid")
    assert table.schema.metadata[b"device"] == b"cpu"
    assert schema.grid_of(table.schema) == GRID
    np.testing.assert_array_equal(schema.maps_to_numpy(table["saliency"], GRID), maps())


def test_duckdb_reads_the_same_values(path: Path) -> None:
    found = duckdb.sql(f"select row, status, saliency from '{path}' order by row").fetchall()
    assert [row[:2] for row in found] == [(0, "ok"), (1, "missing"), (2, "ok")]
    assert found[1][2] is None
    values = np.array([found[0][2], found[2][2]])
    np.testing.assert_array_equal(values.reshape(2, *GRID), maps().astype(float))
    counted = duckdb.sql(f"select avg(list_avg(saliency)) from '{path}'").fetchall()
    assert counted[0][0] == pytest.approx(maps().astype(float).mean(), rel=1e-6)


def test_pandas_reads_the_same_values(path: Path) -> None:
    frame = pd.read_parquet(path)
    assert frame["saliency"][1] is None
    values = np.stack([frame["saliency"][0], frame["saliency"][2]])
    np.testing.assert_array_equal(values.reshape(2, *GRID), maps())
    assert frame["label"].isna().tolist() == [False, True, True]


def test_polars_reads_the_same_values(path: Path) -> None:
    frame = pl.read_parquet(path)
    values = frame["saliency"].to_list()
    assert values[1] is None
    np.testing.assert_array_equal(np.array([values[0], values[2]]).reshape(2, *GRID), maps())
    scanned = pl.scan_parquet(path).filter(pl.col("status") == "ok").select("row").collect()
    assert scanned["row"].to_list() == [0, 2]


def test_the_same_table_makes_the_same_bytes() -> None:
    first = schema.encode_parquet(part(), {"device": "cpu", "batch": "8"})
    assert first == schema.encode_parquet(part(), {"batch": "8", "device": "cpu"})
    assert first == schema.encode_parquet(
        pa.concat_tables([part()[:1], part()[1:]]), {"device": "cpu", "batch": "8"}
    )
    assert first != schema.encode_parquet(part(), {"device": "cuda", "batch": "8"})


def test_an_empty_table_and_class_heatmaps_can_be_written() -> None:
    empty = schema.explanations(GRID).empty_table()
    assert pq.read_table(io.BytesIO(schema.encode_parquet(empty, {}))).equals(empty)
    made = schema.class_heatmaps(GRID)
    cells = schema.maps_to_arrow(maps(), made.field("mean").type)
    columns: dict[str, Any] = {f.name: pa.nulls(2, f.type) for f in made if f.nullable}
    columns.update(target_kind=["predicted"] * 2, target=[0, 1], group=["all"] * 2, count=[3, 4])
    table = pa.table({f.name: columns[f.name] for f in made} | {"mean": cells}, schema=made)
    again = pq.read_table(io.BytesIO(schema.encode_parquet(table, {})))
    assert again.equals(table)
    np.testing.assert_array_equal(schema.maps_to_numpy(again["mean"], GRID), maps())


def test_the_content_digest_is_of_the_values_alone(path: Path) -> None:
    table = part()
    digest = pq.read_schema(path).metadata[schema.CONTENT_DIGEST.encode()].decode()
    assert digest == table_digest(table)
    assert digest == table_digest(pq.read_table(path))
    assert digest == table_digest(pa.concat_tables([table[:1], table[:0], table[1:]]))
    assert digest == table_digest(pa.concat_tables([table[2:], table])[1:])
    assert digest != table_digest(table.take([1, 0, 2]))
    assert digest != table_digest(table.drop_columns(["entropy"]))
    assert digest != table_digest(table.rename_columns([*table.column_names[:-1], "other"]))


def slow_digest(columns: dict[str, tuple[str, list[bytes | None]]]) -> str:
    """The definition of the content digest, value by value."""
    state = hashlib.sha256()
    for name, (kind, values) in columns.items():
        state.update(name.encode() + b"\0" + kind.encode() + b"\0")
        lengths = [struct.pack("<q", -1 if value is None else len(value)) for value in values]
        state.update(hashlib.sha256(b"".join(lengths)).digest())
        state.update(hashlib.sha256(b"".join(value or b"" for value in values)).digest())
    return state.hexdigest()


def test_the_content_digest_is_its_definition() -> None:
    kind = pa.list_(pa.float16(), 2)
    half, one = np.float16(0.5), np.float16(1)
    table = pa.table(
        {
            "text": pa.array(["a", None, "", "ü"]),
            "number": pa.array([1, None, -20, 300], pa.int32()),
            "flag": pa.array([True, None, False, True]),
            "share": pa.array([0.5, None, 1.0, -0.0], pa.float32()),
            "map": pa.array([[half, one], None, [one, half], None], kind),
        }
    )
    expected = slow_digest(
        {
            "text": ("string", [b"a", None, b"", "ü".encode()]),
            "number": ("int32", [b"1", None, b"-20", b"300"]),
            "flag": ("bool", [b"\1", None, b"\0", b"\1"]),
            "share": (
                "float32",
                [struct.pack("<f", x) if x != 9 else None for x in (0.5, 9, 1, -0.0)],
            ),
            "map": (
                "float16[2]",
                [struct.pack("<ee", 0.5, 1), None, struct.pack("<ee", 1, 0.5), None],
            ),
        }
    )
    assert table_digest(table) == expected
    assert table_digest(pa.concat_tables([table[3:], table])[1:]) == expected


def test_null_and_empty_differ_and_lengths_separate_values() -> None:
    digests = {
        table_digest(pa.table({"x": pa.array(values, pa.string())}))
        for values in (["ab", "c"], ["a", "bc"], ["abc", None], ["abc", ""], ["abc"])
    }
    assert len(digests) == 5
    with pytest.raises(TypeError, match="has no digest"):
        type_name(pa.timestamp("s"))
