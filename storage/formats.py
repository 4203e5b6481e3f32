"""Files that list images: one reader for each format, and the same three columns out of all.

A reader gives a table with the columns uri and, where the file has them, image_id and label, of
whatever type; `normalised` does the rest. What is wrong with a file is a ValueError.
"""

import posixpath
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from storage.locations import Location

# The first name that is there wins; of the others exactly one may be there.
_NAMES = {
    "uri": ("uri", "path", "image", "file", "filename", "file_name", "url"),
    "label": ("label", "class", "category"),
    "image_id": ("image_id", "id"),
}
_WHOLE = r"^-?(0|[1-9][0-9]{0,17})(\.0+)?$"
_ABSOLUTE = r"^([A-Za-z][A-Za-z0-9+.-]*://|/|~)"


def read(location: Location, extension: str) -> pa.Table:
    """The columns that a file has of uri, label and image_id, as they are. Raises ValueError."""
    try:
        return READERS[extension](location)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # Arrow's, for a damaged file
            raise ValueError(str(error)) from error
        raise


def _read_parquet(location: Location) -> pa.Table:
    with location.open() as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        chosen = _choose_columns(parquet.schema_arrow.names)
        table = parquet.read(columns=list(chosen.values()))
    return pa.table({name: table.column(source) for name, source in chosen.items()})


def _read_csv(location: Location) -> pa.Table:
    data = pa.py_buffer(location.read())
    how = {
        "read_options": pa_csv.ReadOptions(block_size=2**24),
        "parse_options": pa_csv.ParseOptions(newlines_in_values=True),
    }
    chosen = _choose_columns(pa_csv.open_csv(pa.BufferReader(data), **how).schema.names)
    # Read as text: an id 007 stays one, and what is a number does not hang on Arrow's guess.
    convert = pa_csv.ConvertOptions(
        include_columns=list(chosen.values()),
        column_types=dict.fromkeys(chosen.values(), pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    table = pa_csv.read_csv(pa.BufferReader(data), convert_options=convert, **how)
    columns = {name: table.column(source) for name, source in chosen.items()}
    if "label" in columns and _holds_whole_numbers(columns["label"]):
        digits = pc.replace_substring_regex(columns["label"], r"\.0+$", "")
        columns["label"] = digits.cast(pa.int64())
    return pa.table(columns)


READERS: dict[str, Callable[[Location], pa.Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _holds_whole_numbers(texts: pa.ChunkedArray) -> bool:
    is_whole = pc.match_substring_regex(texts, _WHOLE)
    return texts.null_count < len(texts) and bool(pc.all(is_whole, skip_nulls=True).as_py())


def _choose_columns(found: Sequence[str]) -> dict[str, str]:
    """Which of the file's columns is the uri, and which the label and the image_id if any."""
    chosen = {}
    for wanted, accepted in _NAMES.items():
        matches = [name for name in found if name.lower() in accepted]
        exact = [name for name in matches if name.lower() == wanted]
        matches = exact or matches
        if len(matches) > 1 or (not matches and wanted == "uri"):
            columns = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
            what = "several columns" if matches else "no column"
            raise ValueError(
                f"{what} for {wanted}: name exactly one {wanted} (or {', '.join(accepted[1:])}); "
                f"columns found: {columns}"
            )
        if matches:
            chosen[wanted] = matches[0]
    return chosen


def normalised(raw: pa.Table, folder: Location) -> pa.Table:
    """The columns image_id, uri and label of a manifest whose relative uris start at `folder`.

    Raises ValueError for missing or repeated ids and for types that are no ids, uris or labels.
    """
    uri = _text("uri", raw.column("uri"))
    uri = pc.if_else(pc.equal(uri, ""), pa.scalar(None, pa.string()), uri)
    image_id = _text("image_id", raw.column("image_id")) if "image_id" in raw.column_names else uri
    _check_ids(image_id)
    nulls = pa.chunked_array([pa.nulls(len(raw), pa.string())])
    label = _label(raw.column("label")) if "label" in raw.column_names else nulls
    return pa.table({"image_id": image_id, "uri": _resolved(uri, folder), "label": label})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _text(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = _plain(column)
    is_number = name == "image_id" and pa.types.is_integer(column.type)
    if not (is_number or _is_text(column.type)):
        raise ValueError(f"column {name} is of type {column.type}: it must hold text")
    return column.cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    )


def _label(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = _plain(column)
    if _is_text(column.type):
        return column.cast(pa.string())
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_floating(column.type):  # pandas' integers with gaps
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if not pc.all(pc.equal(column, pc.floor(column))).as_py():
            raise ValueError("column label holds fractions: labels are text or integers")
        return column.cast(pa.int64())
    raise ValueError(
        f"column label is of type {column.type}: labels are text or integers, so convert it "
        "(true and false, say, to two class names)"
    )


def _check_ids(image_id: pa.ChunkedArray) -> None:
    if image_id.null_count:
        rows = np.flatnonzero(np.asarray(image_id.is_null()))[:5].tolist()
        raise ValueError(f"{image_id.null_count} rows have no image_id: the first are {rows}")
    if pc.count_distinct(image_id).as_py() == len(image_id):
        return
    counts = pc.value_counts(image_id)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    first = twice.field("values")[:5].to_pylist()
    raise ValueError(
        f"{len(twice)} image_ids occur more than once: the first are {first}. Give each row an "
        "image_id of its own"
    )


def _resolved(uri: pa.ChunkedArray, folder: Location) -> pa.ChunkedArray:
    """Relative uris below the manifest's folder, without . and .. (S3 knows no such segments)."""
    is_absolute = pc.match_substring_regex(uri, _ABSOLUTE)
    joined = pc.binary_join_element_wise(folder.url.rstrip("/"), uri, "/")
    resolved = pc.if_else(is_absolute, uri, joined)
    has_dots = pc.match_substring_regex(uri, r"(^|/)\.\.?(/|$)")
    dotted = pc.fill_null(pc.and_(has_dots, pc.invert(is_absolute)), False)
    if not pc.any(dotted).as_py():
        return resolved
    values = resolved.to_pylist()
    for row in np.flatnonzero(np.asarray(dotted)):
        protocol, separator, path = values[row].rpartition("://")
        values[row] = f"{protocol}{separator}{posixpath.normpath(path)}"
    return pa.chunked_array([pa.array(values, pa.string())])
