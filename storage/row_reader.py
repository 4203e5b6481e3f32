"""Stretches of a manifest's rows, one after the other, without reading anything twice."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.columns import without_views
from storage.rows import RowFile, RowSource

# Rows of a large row group that are held at a time.
BATCH_ROWS = 2**14
# Bytes that are fetched at a time, of each column of a large row group.
BUFFER_BYTES = 2**22


class RowReader:
    """Reads stretches of a RowSource: onwards from where the last one ended.

    A Parquet file can be entered at the start of a row group alone, and writers put a million rows
    into one. So a file stays open between stretches, and of a large group a batch is held. A
    stretch that lies before the last one begins its row group anew. For one thread.
    """

    def __init__(self, source: RowSource) -> None:
        self.source = source
        self._ends = list(accumulate(file.rows for file in source.files))
        self._open: _OpenFile | None = None

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows start to stop (exclusive), in one chunk.

        Raises ValueError for rows that are not there, and where a file has other rows than when
        it was planned; StorageUnavailable.
        """
        if not 0 <= start < stop <= self._ends[-1]:
            raise ValueError(f"rows {start} to {stop} were asked for, of {self._ends[-1]}")
        tables = []
        for file, end in zip(self.source.files, self._ends, strict=True):
            first = max(start - (end - file.rows), 0)
            last = min(stop - (end - file.rows), file.rows)
            if first < last:
                tables.append(self._of_file(file, first, last))
        return pa.concat_tables(tables).combine_chunks()

    def close(self) -> None:
        """Close the file that is open, if one is; what is read next opens it anew."""
        if self._open is not None:
            self._open.stream.close()
            self._open = None

    def _of_file(self, file: RowFile, start: int, stop: int) -> pa.Table:
        def read() -> pa.Table:
            try:
                if self._open is None or self._open.file is not file:
                    self.close()
                    self._open = _OpenFile(file, self.source.columns)
                    self._open.read_footer()
                return self._open.read(start, stop)
            except BaseException:
                self.close()  # nobody knows where in its file it stands
                raise

        return self.source.ours(file.location.attempt(read), file.location)


def read_rows(source: RowSource, start: int, stop: int) -> pa.Table:
    """One stretch, as RowReader.read gives it."""
    with closing(RowReader(source)) as reader:
        return reader.read(start, stop)


class _OpenFile:
    """A Parquet file, a row group of it as a stream of batches, and the batch at hand."""

    def __init__(self, file: RowFile, columns: Sequence[str]) -> None:
        self.file, self.columns = file, columns
        self.stream: BinaryIO = file.open()
        self.group = -1
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.first, self.batch = 0, pa.table({})

    def read_footer(self) -> None:
        """Learn where row groups begin; raises ValueError for a file that was not planned."""
        metadata = pq.read_metadata(self.stream)
        if metadata.num_rows != self.file.rows:
            raise ValueError(
                f"{self.file.location} has {metadata.num_rows} rows and had {self.file.rows} when "
                "the run was planned: a manifest must not change while a run reads it"
            )
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.group_starts = np.cumsum([0, *sizes])
        is_small = max(sizes, default=0) <= BATCH_ROWS
        self.parquet = pq.ParquetFile(
            self.stream,
            metadata=metadata,
            pre_buffer=is_small,  # a group is fetched whole
            buffer_size=0 if is_small else BUFFER_BYTES,
        )

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows start to stop, as the file names and types its columns."""
        tables = []
        while start < stop:
            self._go_to(start)
            end = min(stop, self.first + len(self.batch))
            # Taken, not sliced: a slice keeps alive the whole batch.
            tables.append(self.batch.take(pa.array(np.arange(start, end) - self.first)))
            start = end
        return pa.concat_tables(tables)

    def _go_to(self, row: int) -> None:
        """Have the batch at hand that a row lies in."""
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        if group != self.group or row < self.first:
            self.group, self.first = group, int(self.group_starts[group])
            self.batches = self.parquet.iter_batches(BATCH_ROWS, [group], columns=self.columns)
            self.batch = self.batch.slice(0, 0)
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = without_views(pa.Table.from_batches([next(self.batches)]))
