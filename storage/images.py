"""The images of some manifest rows, read concurrently, each with its own error."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage import tars
from storage.columns import IN_PARQUET, IN_TAR, ColumnNames
from storage.errors import Refused
from storage.formats import damage_is_bad_input, image_column
from storage.locations import Location, StorageUnavailable
from storage.shown import printable
from storage.trust import check_remote, check_scheme, of_public_hosts, refusal

_T = TypeVar("_T")

MAX_BYTES = 256 * 2**20
# Members of a tar that lie no further apart are read in one request, up to so many bytes.
_GAP_BYTES = 2**20
_STRETCH_BYTES = 32 * 2**20
_NOT_THERE = (FileNotFoundError, NotADirectoryError)
# A protocol that is unknown, or whose package is not installed, raises the last two.
_IMPOSSIBLE = (IsADirectoryError, ValueError, ImportError)


@dataclass(frozen=True)
class Fetched:
    """One image's bytes, or why there are none.

    `status` is ok | missing | denied (by the store, or by the rules for uris) | unsupported (a
    folder, a FIFO, an impossible url) | undecodable (in a damaged part of a Parquet file) |
    too_large; `error` is one line, null where the status is ok.
    """

    data: bytes | None
    status: str
    error: str | None


@dataclass(frozen=True)
class Reading:
    """How images are read: fsspec's options for their store, requests at a time, and the limit in
    bytes of one image; a Parquet file that holds images calls that column `image_column`. Uris may
    name local files and private hosts where `allow_local` says so (storage.trust).
    """

    options: Mapping[str, Any]
    image_column: str | None = None
    concurrency: int = 16
    max_bytes: int = MAX_BYTES
    allow_local: bool = False

    def location(self, uri: str) -> Location:
        """Where a row's uri leads. Raises trust.Refused where it may not be read."""
        check_scheme(uri)
        if self.allow_local:
            return Location(uri, self.options)
        check_remote(uri)
        is_http = uri.startswith(("http://", "https://"))
        return Location(uri, of_public_hosts(self.options) if is_http else self.options)


def fetch(rows: pa.Table, reading: Reading) -> list[Fetched]:
    """The images of manifest rows, in their order.

    Raises StorageUnavailable where the store fails, or where a tar or Parquet file is no longer the
    one that was planned: that is a property of no image.
    """
    if IN_TAR[0] in rows.column_names:
        jobs = [_tar_stretch(stretch, reading) for stretch in _stretches(rows, reading.max_bytes)]
    elif IN_PARQUET[0] in rows.column_names:
        jobs = [_parquet_group(group, reading) for group in _groups(rows)]
    else:
        jobs = [_file(uri, reading) for uri in rows.column("uri").to_pylist()]
    with ThreadPoolExecutor(reading.concurrency, "fetch") as pool:
        try:
            return [image for images in pool.map(lambda job: job(), jobs) for image in images]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the shard is lost: ask no more
            raise


def _refused(uri: str, reading: Reading, read: Callable[[Location], _T]) -> _T | Fetched:
    """What `read` gives of a uri's location, or why this one object gives nothing."""
    try:
        return read(reading.location(uri))
    except Refused as error:
        return Fetched(None, "denied", refusal(uri, str(error)))
    except _NOT_THERE as error:
        return Fetched(None, "missing", str(error))
    except PermissionError as error:
        return Fetched(None, "denied", str(error))
    except _IMPOSSIBLE as error:
        return Fetched(None, "unsupported", printable(" ".join(str(error).split())))


def _too_large(max_bytes: int) -> Fetched:
    return Fetched(None, "too_large", f"more than {max_bytes} bytes, the limit")


def _of_bytes(data: bytes | None, max_bytes: int) -> Fetched:
    if data is None:
        return Fetched(None, "missing", "the row holds no bytes of an image")
    return _too_large(max_bytes) if len(data) > max_bytes else Fetched(data, "ok", None)


def _file(uri: str | None, reading: Reading) -> Callable[[], list[Fetched]]:
    def read() -> list[Fetched]:
        if not uri:
            return [Fetched(None, "missing", "the manifest has no uri for this row")]
        limit = reading.max_bytes + 1
        got = _refused(uri, reading, lambda location: location.read(limit=limit))
        return [got if isinstance(got, Fetched) else _of_bytes(got, reading.max_bytes)]

    return read


@dataclass(frozen=True)
class _Member:
    uri: str
    offset: int
    size: int


def _stretches(rows: pa.Table, max_bytes: int) -> Iterator[list[_Member]]:
    """Members that are read in one request: neighbours in one tar, in order."""
    stretch: list[_Member] = []
    columns = (rows.column(name).to_pylist() for name in ("uri", *IN_TAR))
    for member in map(_Member, *columns):
        if stretch and not _continues(stretch, member, max_bytes):
            yield stretch
            stretch = []
        stretch.append(member)
    if stretch:
        yield stretch


def _continues(stretch: list[_Member], member: _Member, max_bytes: int) -> bool:
    first, last = stretch[0], stretch[-1]
    gap = member.offset - (last.offset + last.size)
    length = member.offset + member.size - first.offset
    is_near = member.uri == first.uri and 0 <= gap <= _GAP_BYTES and length <= _STRETCH_BYTES
    return is_near and max(last.size, member.size) <= max_bytes


def _tar_stretch(stretch: list[_Member], reading: Reading) -> Callable[[], list[Fetched]]:
    first, last = stretch[0], stretch[-1]
    start = first.offset - tars.BLOCK

    def read() -> list[Fetched]:
        if first.size > reading.max_bytes:
            return [_too_large(reading.max_bytes)]
        length = last.offset + last.size - start

        def members(location: Location) -> list[Fetched]:
            data = location.read(limit=length, start=start)
            return [Fetched(_member(data, m, start, location), "ok", None) for m in stretch]

        got = _refused(first.uri, reading, members)
        return [got] * len(stretch) if isinstance(got, Fetched) else got

    return read


def _member(data: bytes, member: _Member, start: int, location: Location) -> bytes:
    at = member.offset - start
    content = data[at : at + member.size]
    header = data[at - tars.BLOCK : at]
    if len(content) < member.size or not tars.holds_member(header, member.size):
        raise StorageUnavailable(
            f"{location} is not as it was when the run was planned: no member of {member.size} "
            f"bytes at {member.offset}; put the old file back, or start a run of its own"
        )
    return content


@dataclass(frozen=True)
class _Group:
    uri: str
    number: int
    rows: list[int]


class _Watched:
    """A stream that remembers what its store raised: some raise what Arrow raises for damage."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell, self.closed = stream.seek, stream.tell, False
        self._read = stream.read
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._read(size)
        except Exception as error:  # every filesystem brings its own; it is raised again
            self.error = error
            raise


class _GroupDamaged(Exception):  # noqa: N818 - a statement about a row group
    """Arrow cannot read what the store gave of a row group."""


def _groups(rows: pa.Table) -> Iterator[_Group]:
    columns = (rows.column(name).to_pylist() for name in ("uri", *IN_PARQUET))
    for (uri, number), members in groupby(zip(*columns, strict=True), key=lambda row: row[:2]):
        yield _Group(uri, number, [member[2] for member in members])


def _parquet_group(group: _Group, reading: Reading) -> Callable[[], list[Fetched]]:
    def column(location: Location) -> list[bytes | None]:
        with location.open() as stream:
            file = _Watched(stream)
            parquet = pq.ParquetFile(file, pre_buffer=True)
            _check_group(parquet, group, location)
            name = image_column(parquet.schema_arrow, ColumnNames(uri=reading.image_column))
            try:
                with damage_is_bad_input():
                    table = parquet.read_row_group(group.number, columns=[name])
            except ValueError as error:
                if file.error is not None:
                    raise file.error from None
                raise _GroupDamaged(" ".join(str(error).split())) from error
        images = table.column(0)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        wanted: list[bytes | None] = images.take(pa.array(group.rows)).to_pylist()
        return wanted

    def images() -> list[bytes | None] | Fetched:
        return _refused(
            group.uri, reading, lambda location: location.attempt(lambda: column(location))
        )

    def read() -> list[Fetched]:
        try:
            got = _again_where_damaged(images)
        except _GroupDamaged as error:
            told = printable(f"row group {group.number} of the file is damaged: {error}")
            got = Fetched(None, "undecodable", told)
        if isinstance(got, Fetched):
            return [got] * len(group.rows)
        return [_of_bytes(data, reading.max_bytes) for data in got]

    return read


def _again_where_damaged(read: Callable[[], _T]) -> _T:
    """A store that gave other bytes than it holds must make no rows: damage is met twice."""
    try:
        return read()
    except _GroupDamaged:
        return read()


def _check_group(parquet: pq.ParquetFile, group: _Group, location: Location) -> None:
    has_group = group.number < parquet.num_row_groups
    rows = parquet.metadata.row_group(group.number).num_rows if has_group else 0
    if max(group.rows) >= rows:
        raise StorageUnavailable(
            f"{location} is not as it was when the run was planned: row group {group.number} has "
            f"{rows} rows; put the old file back, or start a run of its own"
        )
