"""More rows than fit into memory, sorted by an integer column.

Tables are gathered into blocks; a block is sorted and spilled to a local folder. Any range of the
whole order is then one slice of every block.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import StorageUnavailable

Integers = NDArray[np.int64]

_WITHOUT_KEY = 2**31  # behind every int32
_BATCH_ROWS = 256  # a slice of a block is read in whole batches


@dataclass(frozen=True)
class Block:
    """Sorted rows in one file of the spill folder.

    `keys` are the distinct keys, ascending; rows starts[i] to starts[i + 1] have keys[i].
    """

    path: Path
    schema: pa.Schema
    keys: Integers
    starts: Integers

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def rows_of(self, key: int) -> range:
        """The rows with this key, or the empty range where they would be."""
        at = int(np.searchsorted(self.keys, key))
        is_there = at < len(self.keys) and self.keys[at] == key
        return range(int(self.starts[at]), int(self.starts[at + is_there]))

    def read(self, rows: range) -> pa.Table:
        """Consecutive rows, at least one, as a view of the mapped file."""
        first, last = rows.start // _BATCH_ROWS, (rows.stop - 1) // _BATCH_ROWS
        with pa.memory_map(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(number) for number in range(first, last + 1)]
        return pa.Table.from_batches(batches).slice(rows.start - first * _BATCH_ROWS, len(rows))


@dataclass(frozen=True)
class SortedRows:
    """All rows by ascending key, rows without a key last, else in the order they came in.

    `keys` are the distinct keys, and `ends` the position behind the last row of each.
    """

    column: str
    blocks: list[Block]
    schema: pa.Schema
    keys: Integers
    ends: Integers

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)

    def read(self, rows: range) -> pa.Table:
        """The rows at these positions of the whole order; a column that a table lacked is null."""
        borders = zip(self._before(rows.start), self._before(rows.stop), strict=True)
        slices = [range(start, stop) for start, stop in borders]
        found = [b.read(s) for b, s in zip(self.blocks, slices, strict=True) if s]
        empty = self.schema.empty_table()
        table = pa.concat_tables([empty, *found], promote_options="default").combine_chunks()
        return table.take(_order(_keys(table, self.column)))

    def _before(self, position: int) -> list[int]:
        """How many rows of each block come before `position`."""
        at = int(np.searchsorted(self.ends, position))
        left = position - int(self.ends[at - 1] if at else 0)
        counts = []
        for block in self.blocks:
            same = block.rows_of(int(self.keys[at]))
            counts.append(same.start + min(left, len(same)))
            left -= min(left, len(same))
        return counts


def sort_rows(tables: Iterable[pa.Table], column: str, folder: Path, block_rows: int) -> SortedRows:
    """Sort tables by an int32 column, in blocks of at least `block_rows` rows but the last.

    `folder` is a local one that is left full of the rows, uncompressed; memory holds about two
    blocks. The tables' metadata is dropped. Raises StorageUnavailable where the disk is full.
    """
    blocks: list[Block] = []
    waiting: list[pa.Table] = []

    def spill() -> None:
        block = pa.concat_tables(waiting, promote_options="default").combine_chunks()
        waiting.clear()  # before the rows are there a third time
        blocks.append(_spilled(block, column, folder / f"{len(blocks):06d}.arrow"))

    for table in tables:
        waiting.append(table.replace_schema_metadata(None))
        if sum(each.num_rows for each in waiting) >= block_rows:
            spill()
    if waiting:
        spill()
    return _together(column, blocks)


def _spilled(table: pa.Table, column: str, path: Path) -> Block:
    keys = _keys(table, column)
    order = _order(keys)
    table = table.take(order)
    distinct, starts = np.unique(keys[order.to_numpy()], return_index=True)
    try:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_BATCH_ROWS)
    except OSError as error:
        raise StorageUnavailable(
            f"cannot spill rows to {path.parent}: {error}; make room there, or set TMPDIR to a "
            "folder with room for all rows uncompressed"
        ) from error
    return Block(path, table.schema, distinct, np.append(starts, len(table)).astype(np.int64))


def _together(column: str, blocks: list[Block]) -> SortedRows:
    schema = pa.unify_schemas([block.schema for block in blocks])
    of_blocks = np.concatenate([block.keys for block in blocks])
    counts = np.concatenate([np.diff(block.starts) for block in blocks])
    keys, number = np.unique(of_blocks, return_inverse=True)
    ends = np.cumsum(np.bincount(number, counts, len(keys)).astype(np.int64))
    return SortedRows(column, blocks, schema, keys, ends)


def _keys(table: pa.Table, column: str) -> Integers:
    values = pc.fill_null(table[column].cast(pa.int64()), _WITHOUT_KEY)
    return np.asarray(values.to_numpy(), dtype=np.int64)


def _order(keys: Integers) -> pa.Array:
    return pa.array(np.argsort(keys, kind="stable"))
