"""A digest of a table's content that no version, chunking or file format changes.

sha256 over the columns in order: for each its name and type as text, then two sha256 digests: of
one little-endian int64 a row with the length of its value in bytes (-1 for null), and of the values
without the nulls: UTF-8 text, decimal text for integers, little-endian raw values for floats,
booleans and lists of floats.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def type_name(kind: pa.DataType) -> str:
    """The type in our own words, such as int64, string or float16[196]; pyarrow's have changed.

    Raises TypeError for a type that no table here uses.
    """
    if pa.types.is_fixed_size_list(kind):
        return f"{type_name(kind.value_type)}[{kind.list_size}]"
    if pa.types.is_floating(kind):
        return f"float{kind.bit_width}"
    if pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return str(kind)
    raise TypeError(f"a column of type {kind} has no digest: use string, bool, numbers or lists")


class TableDigest:
    """The digest of a table that is given piece by piece; all pieces have the same columns."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], _Column] = {}

    def update(self, table: pa.Table) -> None:
        """Add the next rows. Raises ValueError where columns or types differ from the first's."""
        names = [(name, type_name(table.schema.field(name).type)) for name in table.column_names]
        if not self._columns:
            self._columns = {name: _Column() for name in names}
        if list(self._columns) != names:
            raise ValueError(f"rows of one table have {list(self._columns)}, these have {names}")
        for (name, _), state in self._columns.items():
            state.update(table.column(name))

    def hexdigest(self) -> str:
        """sha256, as hex, of the column names, types and values so far."""
        state = hashlib.sha256()
        for (name, kind), column in self._columns.items():
            state.update(f"{name}\0{kind}\0".encode())
            state.update(column.lengths.digest() + column.values.digest())
        return state.hexdigest()


def table_digest(table: pa.Table) -> str:
    """sha256, as hex, of a table's column names, types and values."""
    digest = TableDigest()
    digest.update(table)
    return digest.hexdigest()


class _Column:
    def __init__(self) -> None:
        self.lengths, self.values = hashlib.sha256(), hashlib.sha256()

    def update(self, column: pa.ChunkedArray) -> None:
        if pa.types.is_integer(column.type):
            column = column.cast(pa.string())
        for chunk in column.chunks:
            self.lengths.update(_lengths(chunk).tobytes())
            for values in _values(chunk.drop_null()):
                self.values.update(values)


def _lengths(chunk: pa.Array) -> np.ndarray:
    if pa.types.is_string(chunk.type):
        lengths = pc.fill_null(pc.binary_length(chunk), -1)
        return np.asarray(lengths).astype("<i8")
    return np.where(np.asarray(chunk.is_valid()), _width(chunk.type), -1).astype("<i8")


def _width(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return _width(kind.value_type) * int(kind.list_size)
    return max(int(kind.bit_width) // 8, 1)  # a boolean counts as one byte


def _values(chunk: pa.Array) -> Iterator[memoryview | bytes]:
    """The bytes of a chunk without nulls."""
    if len(chunk) == 0:
        return
    if pa.types.is_string(chunk.type):
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, "<i4")[chunk.offset : chunk.offset + len(chunk) + 1]
        if data is not None:
            yield memoryview(data)[int(ends[0]) : int(ends[-1])]
        return
    flat = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk
    values = flat.to_numpy(zero_copy_only=False)
    yield values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
