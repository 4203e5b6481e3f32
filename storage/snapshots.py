"""Manifest rows as the bytes of a run's manifest.parquet."""

import io
from collections.abc import Iterator
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from storage.columns import to_store, whole_numbers
from storage.rows import ROWS_AT_ONCE

# A shard reads the row groups that its rows lie in, and has at most so many rows.
ROWS_OF_A_GROUP = 4096


def encode(tables: Iterator[pa.Table]) -> bytes:
    """Rows as Parquet, in groups of as many as a shard may read; nothing for no rows."""
    sink = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    for table in chain(tables, [None]):
        if table is not None:
            waiting.append(table)
            if sum(map(len, waiting)) < ROWS_AT_ONCE:
                continue
        rows = pa.concat_tables(waiting) if waiting else None
        if rows:
            writer = writer or pq.ParquetWriter(
                sink, rows.schema, compression="zstd", use_dictionary=["uri", "label"]
            )
            writer.write_table(rows, ROWS_OF_A_GROUP)
            waiting = []
    if writer is not None:
        writer.close()
    return sink.getvalue()


def typed(data: bytes) -> bytes:
    """The snapshot with labels as integers where all of them are whole numbers, else as it is."""
    if not data:
        return data
    labels = whole_numbers(pq.read_table(pa.BufferReader(data), columns=["label"]).column("label"))
    if labels is None:
        return data
    start = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal start
        for table in rows_of(data):
            numbers = labels.slice(start, len(table))
            start += len(table)
            yield table.set_column(table.column_names.index("label"), "label", numbers)

    return encode(tables())


def rows_of(data: bytes) -> Iterator[pa.Table]:
    """The rows of a snapshot, some at a time."""
    if not data:
        return
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(ROWS_AT_ONCE):
        yield pa.Table.from_batches([batch])


def without_secrets(data: bytes) -> bytes:
    """The snapshot with uris as they may be stored; the same object where none holds a secret."""
    if all(to_store(table) is table for table in rows_of(data)):
        return data
    return encode(map(to_store, rows_of(data)))
