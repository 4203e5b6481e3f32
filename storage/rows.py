"""Where the rows of a manifest lie, and all of them, some at a time."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage.columns import normalised
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
                    batches = parquet.iter_batches(ROWS_AT_ONCE, groups, columns=self.columns)
                    for batch in batches:
                        yield self.ours(pa.Table.from_batches([batch]), file.location)

    def attempt(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, which reads tables, as Location.attempt gives it."""
        return self.files[0].location.attempt(work)

    @property
    def columns(self) -> list[str]:
        """Which columns of its files are read, by their own names."""
        return sorted({*self.names.values(), *self.places})

    def ours(self, table: pa.Table, location: Location) -> pa.Table:
        """A file's rows as manifest rows; relative uris start at the folder of `location`."""
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
