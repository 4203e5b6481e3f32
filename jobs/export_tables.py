"""Rows of a run as other tools read them: chosen ones, and CSV."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc


def rows_at(table: pa.Table, rows: Collection[int]) -> pa.Table:
    """Those of a part's rows whose `row` is among these."""
    return table.filter(pc.is_in(table["row"], pa.array(rows, pa.int64())))


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """CSV in UTF-8 as RFC 4180 has it, but for its line ends; null is an empty field."""
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return sink.getvalue().encode()
