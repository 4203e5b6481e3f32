"""From the columns of a list of images, whatever their names and types, to the manifest's own.

Every manifest row has image_id, uri and label. An image inside a larger file also has its place in
the file that uri names: offset and size in bytes (a tar's member), or row_group and row_in_group.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.locations import Location
from storage.shown import printable

IN_TAR = ("offset", "size")
IN_PARQUET = ("row_group", "row_in_group")
# The first name that is there wins; of the others exactly one may be there.
_USUAL = {
    "uri": ("uri", "path", "image", "img", "file", "filename", "file_name", "url"),
    "label": ("label", "class", "category"),
    "image_id": ("image_id", "id"),
}
_OPTIONS = {"uri": "--uri-column", "label": "--label-column", "image_id": "--id-column"}
_WHOLE = r"^-?(0|[1-9][0-9]{0,17})(\.0+)?$"
_ABSOLUTE = r"^([A-Za-z][A-Za-z0-9+.-]*://|/|~)"
# Of the urls that are used here only these have a query, which is where signatures are, and may
# hold a user and password; in a file's or a key's name a ? or @ is a letter like any other.
_WEB = r"(?i)^https?://"
_SECRETS = r"(?is)^(https?://)(?:[^/?#]*@)?([^?]*).*$"


@dataclass(frozen=True)
class ColumnNames:
    """What a list calls its columns; None: by one of the usual names, where there is one."""

    uri: str | None = None
    label: str | None = None
    image_id: str | None = None

    def choose(self, found: Sequence[str], *, needs_uri: bool = True) -> dict[str, str]:
        """Which of the found columns is the uri, and which the label and image_id if any.

        Raises ValueError where a named column is missing, or where the usual names do not decide.
        """
        chosen = {}
        for wanted, accepted in _USUAL.items():
            named = getattr(self, wanted)
            if named is not None and named not in found:
                option = _OPTIONS[wanted]
                raise ValueError(f"no column {named!r}, as {option} has it; {_shown(found)}")
            name = named or _by_usual_name(found, wanted, accepted)
            if name is not None and found.count(name) > 1:
                raise ValueError(f"several columns are called {name!r}: rename all but one")
            if name is not None:
                chosen[wanted] = name
            elif wanted == "uri" and needs_uri:
                raise ValueError(_none_or_several("no column", wanted, accepted, found))
        return chosen


def _by_usual_name(found: Sequence[str], wanted: str, accepted: Sequence[str]) -> str | None:
    matches = [name for name in found if name.lower() in accepted]
    matches = [name for name in matches if name.lower() == wanted] or matches
    if len(matches) > 1:
        raise ValueError(_none_or_several("several columns", wanted, accepted, found))
    return matches[0] if matches else None


def _none_or_several(what: str, wanted: str, accepted: Sequence[str], found: Sequence[str]) -> str:
    return (
        f"{what} for {wanted}: name exactly one {wanted} (or {', '.join(accepted[1:])}), or say "
        f"which with {_OPTIONS[wanted]}; {_shown(found)}"
    )


def _shown(found: Sequence[str]) -> str:
    names = printable(", ".join(found[:20]))
    return f"columns found: {names}{', ...' if len(found) > 20 else ''}"


def normalised(raw: pa.Table, folder: Location, places: Sequence[str] = ()) -> pa.Table:
    """A list's rows as manifest rows; relative uris start at `folder`.

    `raw` has uri, the columns of `places` and, where the list has them, image_id and label. An
    image_id that is the uri is so without its secrets: it stays the same when a list is signed
    anew. Raises ValueError for missing ids and for types that are no ids, uris or labels.
    """
    uri = _text("uri", raw.column("uri"))
    uri = pc.if_else(pc.equal(uri, ""), pa.scalar(None, pa.string()), uri)
    image_id = _text("image_id", raw.column("image_id")) if "image_id" in raw.column_names else uri
    if image_id.null_count:
        rows = np.flatnonzero(np.asarray(image_id.is_null()))[:5].tolist()
        raise ValueError(f"{image_id.null_count} rows have no image_id: the first are {rows}")
    is_uri = pc.fill_null(pc.equal(image_id, uri), False)
    image_id = pc.if_else(is_uri, without_secrets(image_id), image_id)
    nulls = pa.chunked_array([pa.nulls(len(raw), pa.string())])
    label = _label(raw.column("label")) if "label" in raw.column_names else nulls
    _refuse_undecodable({"uri": uri, "label": label, "image_id": image_id})
    columns = {"image_id": image_id, "uri": _resolved(uri, folder), "label": label}
    return pa.table(columns | {name: raw.column(name) for name in places})


def _refuse_undecodable(columns: Mapping[str, pa.ChunkedArray]) -> None:
    """Arrow reads texts of JSON and Parquet as they are; Python cannot, once a shard needs them."""
    for name, column in columns.items():
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {name} holds texts that are no UTF-8: {error}") from error


def without_secrets(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    """Uris as they may be stored: those of the web without query, user and password."""
    if not pc.any(pc.match_substring_regex(uris, _WEB)).as_py():
        return uris
    return pc.replace_substring_regex(uris, _SECRETS, r"\1\2")


def to_store(rows: pa.Table) -> pa.Table:
    """Manifest rows as they may be stored; the same object where nothing in them is secret."""
    uris = rows.column("uri")
    stored = without_secrets(uris)
    if stored is uris or stored.equals(uris):
        return rows
    return rows.set_column(rows.column_names.index("uri"), "uri", stored)


def whole_numbers(labels: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Labels written as text, as integers; None unless every one is a whole number."""
    is_whole = pc.match_substring_regex(labels, _WHOLE)
    if labels.null_count == len(labels) or not pc.all(is_whole, skip_nulls=True).as_py():
        return None
    return pc.replace_substring_regex(labels, r"\.0+$", "").cast(pa.int64())


def without_views(table: pa.Table) -> pa.Table:
    """The table with texts as string, not as string_view, of which Arrow can take no rows."""
    for index, column in enumerate(table.schema):
        if pa.types.is_string_view(column.type):
            texts = table.column(index).cast(pa.string())
            table = table.set_column(index, column.name, texts)
    return table


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
        column = column.cast(pa.float64())  # Arrow rounds no float16
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        if not pc.all(pc.equal(column, pc.floor(column))).as_py():
            raise ValueError("column label holds fractions: labels are text or integers")
        return column.cast(pa.int64())
    raise ValueError(
        f"column label is of type {column.type}: labels are text or integers, so convert it "
        "(true and false, say, to two class names)"
    )


def _all_begin_alike(uri: pa.ChunkedArray) -> bool:
    """Whether all uris begin like the first, which is absolute: the usual case, and a quick one."""
    first = re.match(_ABSOLUTE, (uri[0].as_py() or "") if len(uri) else "")
    return first is not None and bool(pc.all(pc.starts_with(uri, first[0])).as_py())


def _resolved(uri: pa.ChunkedArray, folder: Location) -> pa.ChunkedArray:
    """Relative uris below the list's folder, without . and .. (S3 knows no such segments)."""
    if _all_begin_alike(uri):
        return uri
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
