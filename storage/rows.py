"""Where the rows of a manifest lie, and a stretch of them at a time."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.columns import normalised, without_views
from storage.locations import Location

COLUMNS = ("image_id", "uri", "label")
ROWS_AT_ONCE = 2**18
_T = TypeVar("_T")


@dataclass(frozen=True)
class RowFile:
    """A Parquet file of manifest rows.

    `data` are its bytes where it is in memory alone: rows whose uris hold secrets, which no store
    is to see; `location` is then that of the list that they were made from.
    """

    location: Location
    rows: int
    data: bytes | None = field(default=None, repr=False)

    def open(self) -> BinaryIO:
        """A stream of the file. Use within the location's `attempt`."""
        return self.location.open() if self.data is None else io.BytesIO(self.data)


@dataclass(frozen=True)
class RowSource:
    """The rows of a manifest, in order: Parquet files, and how these name our columns.

    Uris are as the list has them, with the secrets that reading needs: see columns.to_store.
    `places` are the columns, if any, that say where in the file of its uri an image lies.
    """

    files: tuple[RowFile, ...]
    names: Mapping[str, str]
    places: tuple[str, ...] = ()

    def tables(self) -> Iterator[pa.Table]:
        """All rows, some at a time. Use within `attempt`; raises ValueError for bad columns."""
        for file in self.files:
            with file.open() as stream:
                parquet = pq.ParquetFile(stream, pre_buffer=True)
                for groups in _together(parquet.metadata):
                    batches = parquet.iter_batches(ROWS_AT_ONCE, groups, columns=self._columns)
                    for batch in batches:
                        yield self._ours(pa.Table.from_batches([batch]), file.location)

    def attempt(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, which reads tables, as Location.attempt gives it."""
        return self.files[0].location.attempt(work)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows start to stop (exclusive), reading no other row groups than theirs.

        Raises ValueError for rows that are not there, StorageUnavailable.
        """
        ends = list(accumulate(file.rows for file in self.files))
        if not 0 <= start < stop <= ends[-1]:
            raise ValueError(f"rows {start} to {stop} were asked for, of {ends[-1]}")
        tables = []
        for file, end in zip(self.files, ends, strict=True):
            first = max(start - (end - file.rows), 0)
            last = min(stop - (end - file.rows), file.rows)
            if first < last:
                tables.append(self._read_file(file, first, last))
        return pa.concat_tables(tables).combine_chunks()

    def _read_file(self, file: RowFile, start: int, stop: int) -> pa.Table:
        def read() -> pa.Table:
            with file.open() as stream:
                parquet = pq.ParquetFile(stream, pre_buffer=True)
                if parquet.metadata.num_rows != file.rows:
                    raise ValueError(
                        f"{file.location} has {parquet.metadata.num_rows} rows and had {file.rows} "
                        "when the run was planned: a manifest must not change while a run reads it"
                    )
                return self._rows(parquet, start, stop)

        return self._ours(file.location.attempt(read), file.location)

    def _rows(self, parquet: pq.ParquetFile, start: int, stop: int) -> pa.Table:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        groups = range(first, last + 1)
        table = parquet.read_row_groups(groups, columns=self._columns)
        # Of a large row group only a few rows are wanted: a slice would keep all of it alive.
        inside = np.arange(start, stop) - int(ends[first] - sizes[first])
        return without_views(table).take(pa.array(inside))

    @property
    def _columns(self) -> list[str]:
        return sorted({*self.names.values(), *self.places})

    def _ours(self, table: pa.Table, location: Location) -> pa.Table:
        columns = {name: table.column(source) for name, source in self.names.items()}
        columns |= {name: table.column(name) for name in self.places}
        return normalised(pa.table(columns), location.parent, self.places)


def _together(metadata: pq.FileMetaData) -> Iterator[list[int]]:
    """Consecutive row groups that are fetched at once: a store answers few large requests sooner
    than many small ones, and all at once would not fit into memory."""
    groups: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if groups and rows + size > ROWS_AT_ONCE:
            yield groups
            groups, rows = [], 0
        groups.append(group)
        rows += size
    if groups:
        yield groups


def snapshot(file: RowFile, places: Sequence[str]) -> RowSource:
    """The rows of a run's manifest.parquet, or of the same file in memory."""
    return RowSource((file,), {n: n for n in COLUMNS}, tuple(places))
