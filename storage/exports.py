"""A sorted copy of a run's explanations: where it lies, of which parts it is, when it is whole.

explanations/target-00000.parquet   rows by target, row and target_rank; rows without target last
export.json                         created last: what is there, and that it is all there

Every file's metadata says of which run and parts it is and how it is sorted. The same export makes
the same files, so that a second attempt keeps what an interrupted one left.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.digests import table_digest
from storage.locations import Location
from storage.parts import in_order
from storage.schema import CONTENT_DIGEST, column_encoding

_FILE_BYTES, _GROUP_BYTES = 128 * 2**20, 8 * 2**20
_SCALAR_BYTES = 300  # of a row beside its map
_PAGE_ROWS = 2048  # the step in which readers of the page index skip within a row group
_FOOTER_READERS = 16
ELSEWHERE = "name an empty --out"


class ExportError(ValueError):
    """This run cannot be exported, or not to this place; the message says what to do."""


@dataclass(frozen=True)
class Layout:
    """Most rows of a file and of a row group."""

    file: int
    group: int


def layout(grid: tuple[int, int]) -> Layout:
    """Files of 128 MiB before compression, row groups of 8 MiB, for maps of `grid` cells."""
    row_bytes = 2 * grid[0] * grid[1] + _SCALAR_BYTES
    return Layout(max(_FILE_BYTES // row_bytes, 1), max(_GROUP_BYTES // row_bytes, 1))


@dataclass(frozen=True)
class ExportedFile:
    """One file: its name, its rows, and the first and the last key in it; null is no key."""

    name: str
    rows: int
    first: int | None
    last: int | None


@dataclass(frozen=True)
class Export:
    """The copy at `root`, sorted by the column `key`, of the parts with the digest `parts_digest`.

    All methods raise ExportError where something else is there.
    """

    root: Location
    run: str
    parts_digest: str
    key: str
    layout: Layout

    @property
    def files(self) -> Location:
        return self.root.child("explanations")

    @property
    def identity(self) -> dict[str, str]:
        """What each file's metadata and export.json say, and those of no other export."""
        return {
            "run": self.run,
            "parts_digest": self.parts_digest,
            "sorted_by": f"{self.key}, row, target_rank",
            "rows_per_file": str(self.layout.file),
        }

    def begin(self) -> dict[str, Any] | None:
        """export.json if this very export is complete, else None."""
        inside, begun = entries(self.root), entries(self.files)
        if "export.json" in inside:
            found = read_json(self.root.child("export.json"))
            refuse_other(self.root, found, self.identity)
            return found
        own = re.compile(re.escape(self.key) + r"-\d{5,}\.parquet")
        strangers = sorted(set(inside) - {"explanations"})
        strangers += sorted(name for name in begun if not own.fullmatch(name))
        if strangers:
            raise ExportError(f"{self.root} is not empty: it holds {some(strangers)}; {ELSEWHERE}")
        for name, metadata in zip(
            begun, in_order(self._metadata, begun, _FOOTER_READERS), strict=True
        ):
            refuse_other(self.files.child(name), metadata or {}, self.identity)
        return None

    def write(self, number: int, table: pa.Table, metadata: Mapping[bytes, bytes]) -> ExportedFile:
        """Create the file of these sorted rows, or find it there, left by an earlier attempt."""
        name = f"{self.key}-{number:05d}.parquet"
        said = {**self.identity, CONTENT_DIGEST: table_digest(table)}
        found = self._metadata(name)
        if found is None:
            merged = {**metadata, **{key.encode(): text.encode() for key, text in said.items()}}
            data = encode(table.replace_schema_metadata(merged), self.key, self.layout.group)
            found = said if self.files.child(name).create(data) else self._metadata(name)
        if found is None or found.get(CONTENT_DIGEST) != said[CONTENT_DIGEST]:
            raise ExportError(
                f"{self.files.child(name)} holds other rows than this export; {ELSEWHERE}"
            )
        keys = table[self.key]
        return ExportedFile(name, len(table), keys[0].as_py(), keys[-1].as_py())

    def finish(self, files: list[ExportedFile]) -> dict[str, Any]:
        """Create export.json, which says that the export is complete, and return it."""
        too_many = sorted(set(entries(self.files)) - {file.name for file in files})
        if too_many:
            raise ExportError(f"{self.files} holds {some(too_many)} besides; {ELSEWHERE}")
        rows = sum(file.rows for file in files)
        said = {**self.identity, "rows": rows, "files": [asdict(file) for file in files]}
        self.root.child("export.json").create(f"{json.dumps(said, indent=2)}\n".encode())
        return said

    def _metadata(self, name: str) -> dict[str, str] | None:
        """What a file's metadata says: {} if it is no Parquet file, None if it is not there."""
        place = self.files.child(name)

        def read() -> dict[bytes, bytes]:
            with place.open() as file:
                return pq.read_schema(file).metadata or {}

        try:
            found = place.attempt(read)
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return {key.decode(): value.decode() for key, value in found.items()}


def refuse_other(place: Location, found: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raise ExportError with a line a difference where `found` is not what is `wanted`."""
    lines = [
        f"  {key}: {found.get(key, 'nothing')} there, {value} here"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if lines:
        told = [f"{place} is of another export than this one:", *lines, ELSEWHERE]
        raise ExportError("\n".join(told))


def encode(table: pa.Table, key: str, group: int) -> bytes:
    """Sorted rows as Parquet in row groups of `group` rows, with statistics and page index.

    Columns are encoded as in a part. The same rows, metadata and pyarrow give the same bytes.
    """
    order = [(name, "ascending") for name in (key, "row", "target_rank")]
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        **column_encoding(table.schema),
        write_page_index=True,
        row_group_size=group,
        max_rows_per_page=_PAGE_ROWS,
        sorting_columns=pq.SortingColumn.from_ordering(table.schema, order, "at_end"),
    )
    return sink.getvalue()


def entries(folder: Location) -> dict[str, int]:
    """Names and sizes in bytes of what lies directly in a folder, sub-folders too, sorted by name.

    Names with a dot in front are left out; {} where nothing is. Raises NotADirectoryError for an
    object.
    """
    path = folder.path.rstrip("/")

    def listed() -> list[dict[str, Any]]:
        try:
            return list(folder.filesystem.ls(folder.path, detail=True, refresh=True))
        except FileNotFoundError:
            return []

    found = {str(entry["name"]): int(entry["size"] or 0) for entry in folder.attempt(listed)}
    if path in found:
        raise NotADirectoryError(f"{folder} is an object, not a folder")
    # A store that keeps empty folders lists the folder itself, as path/.
    names = {name[len(path) + 1 :].rstrip("/"): size for name, size in found.items()}
    return {name: names[name] for name in sorted(names) if name and not name.startswith(".")}


def read_json(location: Location) -> dict[str, Any]:
    """A JSON object; {} for what is none."""
    try:
        value = json.loads(location.read())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def some(names: Iterable[str]) -> str:
    """The first name, and how many others there are."""
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
