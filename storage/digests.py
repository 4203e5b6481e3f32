"""A digest of a table's content that no version, chunking or file format changes.

For each column in order: its name and type as text, one little-endian int64 a row with the length
of its value in bytes (-1 for null), then the values without the nulls: UTF-8 text, decimal text for
integers, little-endian raw values for floats, booleans and lists of floats.
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


def table_digest(table: pa.Table) -> str:
    """sha256, as hex, of a table's column names, types and values."""
    state = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name)
        state.update(f"{name}\0{type_name(column.type)}\0".encode())
        if pa.types.is_integer(column.type):
            column = column.cast(pa.string())
        for chunk in column.chunks:
            state.update(_lengths(chunk).tobytes())
        for chunk in column.chunks:
            for values in _values(chunk.drop_null()):
                state.update(values)
    return state.hexdigest()


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
