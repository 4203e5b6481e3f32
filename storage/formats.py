"""Files that list or hold images: one reader for each format, all giving raw rows as a stream.

Raw rows have the columns uri, image_id and label as far as the file has them, of whatever type, the
place of an image within the file, and the columns that a condition names. What is wrong with a file
is a ValueError.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from storage import tars
from storage.columns import ColumnNames
from storage.json_lines import refuse_fatal
from storage.locations import Location

ROWS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Wanted:
    """What to read of a file: its three columns, and whatever column a condition may mean."""

    names: ColumnNames = field(default_factory=ColumnNames)
    where: str | None = None

    def conditions(self, found: list[str]) -> list[str]:
        """The columns whose names occur in the condition, of several of one name none."""
        text = (self.where or "").lower()
        times = Counter(found)
        return [name for name in found if name.lower() in text and times[name] == 1]


@dataclass(frozen=True)
class Source:
    """A file to read, and the name that the images inside it are to be known by."""

    location: Location
    name: str


Reader = Callable[[Source, Wanted], Iterator[pa.Table]]


@contextmanager
def damage_is_bad_input() -> Iterator[None]:
    """Turn what Arrow raises about a file's content into ValueError."""
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # Arrow's, for a damaged file
            raise ValueError(str(error)) from error
        raise


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column holds the images themselves: binary, or Hugging Face's struct."""
    if pa.types.is_struct(kind):
        return any(child.name == "bytes" for child in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_column(schema: pa.Schema, names: ColumnNames) -> str | None:
    """The Parquet path of the column that holds the images; None where it names them instead."""
    chosen = names.choose(_leaves(schema))["uri"]
    if "." in chosen and chosen not in schema.names:
        return None
    kind = schema.field(chosen).type
    if not holds_images(kind):
        return None
    return f"{chosen}.bytes" if pa.types.is_struct(kind) else chosen


def _leaves(schema: pa.Schema) -> list[str]:
    """The columns, and the fields inside structs as column.field."""
    inner = [
        f"{column.name}.{child.name}"
        for column in schema
        if pa.types.is_struct(column.type)
        for child in column.type
    ]
    return [*schema.names, *inner]


def _read_parquet(source: Source, wanted: Wanted) -> Iterator[pa.Table]:
    with source.location.open() as file, damage_is_bad_input():
        parquet = pq.ParquetFile(file)
        chosen = wanted.names.choose(_leaves(parquet.schema_arrow))
        images = image_column(parquet.schema_arrow, wanted.names)
        if images is not None:
            del chosen["uri"]
        inside = None if images is None else images.removesuffix(".bytes")
        names = parquet.schema_arrow.names
        conditions = [name for name in wanted.conditions(names) if name != inside]
        columns = sorted({*chosen.values(), *conditions})
        before = 0
        for group in range(parquet.num_row_groups):
            row = 0
            for table in _batches(parquet, group, columns):
                part = _named(table, chosen, conditions)
                if images is not None:
                    part = _placed(part, source, group, row, before + row)
                row += len(table)
                yield part
            before += row


def _batches(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.Table]:
    if not columns:  # nothing but images
        rows = parquet.metadata.row_group(group).num_rows
        yield pa.table({"_": pa.nulls(rows)})
        return
    for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
        yield pa.Table.from_batches([batch])


def _placed(part: pa.Table, source: Source, group: int, row: int, in_file: int) -> pa.Table:
    """Rows of images inside a Parquet file, with where each lies and, without an id, its number."""
    count = len(part)
    in_group = np.arange(row, row + count)
    part = part.append_column("uri", pa.array([source.location.url] * count, pa.string()))
    if "image_id" not in part.column_names:
        ids = [f"{source.name}#{number}" for number in range(in_file, in_file + count)]
        part = part.append_column("image_id", pa.array(ids, pa.string()))
    part = part.append_column("row_group", pa.array(np.full(count, group), pa.int64()))
    return part.append_column("row_in_group", pa.array(in_group, pa.int64()))


def _named(table: pa.Table, chosen: dict[str, str], conditions: list[str]) -> pa.Table:
    """The chosen columns by our names, beside them those of the condition by their own.

    A column that goes by one of our names and is another's stays out of the condition's reach.
    """
    columns = {name: _column(table, source) for name, source in chosen.items()}
    columns |= {name: table.column(name) for name in conditions if name not in columns}
    return pa.table(columns) if columns else table


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table.column(name)
    column, _, inner = name.rpartition(".")
    return pc.struct_field(table.column(column), inner)


def _read_csv(source: Source, wanted: Wanted) -> Iterator[pa.Table]:
    options = {
        "read_options": pa_csv.ReadOptions(block_size=2**24),
        "parse_options": pa_csv.ParseOptions(newlines_in_values=True),
    }
    with damage_is_bad_input():
        with source.location.open() as file:
            found = pa_csv.open_csv(file, **options).schema.names
        chosen = wanted.names.choose(found)
        conditions = wanted.conditions(found)
        # Read as text: an id 007 stays one, and what is a number does not hang on Arrow's guess.
        convert = pa_csv.ConvertOptions(
            include_columns=sorted({*chosen.values(), *conditions}),
            column_types=dict.fromkeys(chosen.values(), pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        with source.location.open() as file:
            for batch in pa_csv.open_csv(file, convert_options=convert, **options):
                yield _named(pa.Table.from_batches([batch]), chosen, conditions)


def _read_json_lines(source: Source, wanted: Wanted) -> Iterator[pa.Table]:
    """Whole, not as a stream: a column's type may become clear only late in the file."""
    with damage_is_bad_input():
        options = pa_json.ReadOptions(block_size=2**24)
        data = source.location.read()
        refuse_fatal(data)
        table = pa_json.read_json(pa.BufferReader(data), read_options=options)
        chosen = wanted.names.choose(table.column_names)
        yield _named(table, chosen, wanted.conditions(table.column_names))


def _read_tar(source: Source, wanted: Wanted) -> Iterator[pa.Table]:
    yield tars.index(source.location, source.name, wanted.names.label)


READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".tar": _read_tar,
}
# Their labels are text that may be meant as numbers.
UNTYPED = (".csv", ".tar")
