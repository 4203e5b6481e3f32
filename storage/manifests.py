"""The list of images: from a folder, or files that list or hold images, to manifest rows."""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from storage.columns import IN_PARQUET, IN_TAR, ColumnNames, normalised, to_store, without_views
from storage.formats import READERS, UNTYPED, Source, Wanted, damage_is_bad_input, image_column
from storage.inspection import Label, inspect
from storage.locations import Location
from storage.rows import COLUMNS, RowFile, RowSource, snapshot
from storage.selection import Condition, Selection
from storage.snapshots import encode, rows_of, typed, without_secrets
from storage.tars import IMAGE_EXTENSIONS

TARS_AT_ONCE = 16
EVERYTHING = Selection()


class ManifestError(ValueError):
    """The list of images is unusable; the message says what was found and what to change."""


class NothingNew(ManifestError):  # noqa: N818 - it is a statement about the images
    """All images are known already."""


@dataclass(frozen=True)
class Manifest:
    """The images of a run, in order.

    `digest` is the sha256, as hex, of the rows, whatever they were read from, and `labels` counts
    them by label. `groups` are those of the files that hold the images (see Inspection), empty
    where the images are files of their own or some were selected. `ignored` counts a folder's files
    that are no images. `data` is what the run's manifest.parquet is to hold; None where the rows
    are read from the Parquet files that were given. `given` is where the rows are read from where
    that is not manifest.parquet. Neither `digest` nor `data` know of the secrets in uris.
    """

    rows: int
    digest: str
    labels: Mapping[Label, int]
    groups: tuple[tuple[int, ...], ...]
    places: tuple[str, ...]
    data: bytes | None = field(repr=False)
    given: RowSource | None = field(repr=False)
    ignored: int = 0

    def source(self, stored: Location) -> RowSource:
        """Where to read the rows; `stored` is the run's manifest.parquet."""
        return self.given or snapshot(RowFile(stored, self.rows), self.places)


def read_folder(location: Location, selection: Selection = EVERYTHING) -> Manifest:
    """The images below a folder, sorted by path; the first sub-folder's name is the label.

    An image's id is its path relative to the folder. Hidden files and __MACOSX are skipped, other
    files counted as ignored. Raises ManifestError where there is no image, no such folder, or a
    file name that is no UTF-8; StorageUnavailable.
    """
    try:
        found = location.walk()
    except (OSError, ValueError, ImportError) as error:
        raise ManifestError(f"cannot list the images' folder: {error}") from error
    paths = [path for path in found if not _is_hidden(path)]
    images = [path for path in paths if path.lower().endswith(IMAGE_EXTENSIONS)]
    if not images:
        raise ManifestError(
            f"no images in {location}: found {len(paths)} files, none with an image extension "
            f"({' '.join(IMAGE_EXTENSIONS)}); for tar or Parquet files give --manifest"
        )
    _refuse_undecodable(location, images)
    images.sort()  # by code points, which is the order of UTF-8 bytes too
    table = pa.table(
        {
            "image_id": pa.array(images, pa.string()),
            "uri": pa.array([f"{location.url.rstrip('/')}/{path}" for path in images], pa.string()),
            "label": pa.array([_label_of(path) for path in images], pa.string()),
        }
    )
    source = Source(location.child(images[0]), "")
    try:
        rows = _manifest_rows([(source, iter([table]))], selection.where, ())
        data = encode(selection.of(rows))
        manifest = _of_snapshot(data, (), selection, location, len(paths) - len(images))
    except ValueError as error:
        raise ManifestError(f"{location}: {error}") from error
    return _with_rows(manifest, location, selection)


def read_manifest(
    location: Location,
    names: ColumnNames | None = None,
    selection: Selection = EVERYTHING,
) -> Manifest:
    """The rows of files that list images or hold them: one file, a folder of them, or a glob.

    A list (.parquet, .csv, .jsonl) has a uri and, where given, an image_id and a label; relative
    uris start at the file's own folder. A Parquet file may hold the images themselves, and a .tar
    is a WebDataset shard. Integer labels are int64, and so are floats and texts that are all
    whole; a Parquet file's text stays text. Raises ManifestError, StorageUnavailable.
    """
    wanted = Wanted(names or ColumnNames(), selection.where)
    try:
        sources = _sources(location)
        with damage_is_bad_input():
            manifest = location.attempt(lambda: _read(sources, wanted, selection))
    except (OSError, ValueError, ImportError) as error:
        raise ManifestError(f"cannot read the manifest: {error}") from error
    return _with_rows(manifest, location, selection)


def read_stored(location: Location) -> Manifest:
    """The manifest that a run keeps in its manifest.parquet. Raises ManifestError,
    StorageUnavailable.
    """

    def read() -> Manifest:
        with location.open() as file, damage_is_bad_input():
            metadata = pq.read_metadata(file)
        found = metadata.schema.to_arrow_schema().names
        lacking = [name for name in COLUMNS if name not in found]
        if lacking:
            raise ValueError(f"{location} lacks the columns {', '.join(lacking)}: was it edited?")
        places = tuple(name for name in (*IN_TAR, *IN_PARQUET) if name in found)
        source = snapshot(RowFile(location, metadata.num_rows), places)
        with damage_is_bad_input():
            seen = inspect(source.tables)
        return Manifest(seen.rows, seen.digest, seen.labels, seen.groups, places, None, source)

    try:
        return location.attempt(read)
    except (OSError, ValueError, ImportError) as error:
        raise ManifestError(f"cannot read the manifest: {error}") from error


def _with_rows(manifest: Manifest, location: Location, selection: Selection) -> Manifest:
    if manifest.rows:
        return manifest
    if selection.known is not None:
        raise NothingNew(f"{location} holds no image that the run to extend does not have")
    if not selection.is_everything:
        raise ManifestError(f"{location}: no row is left by --where, --classes and the like")
    raise ManifestError(f"{location} has no rows: list at least one image")


def _sources(location: Location) -> list[Source]:
    """The files behind a location, by url."""
    extension = _extension(location.name)
    if "*" in location.url:
        found = location.glob()
        root = location.url[: location.url.index("*")].rpartition("/")[0]
    elif extension in READERS:
        return [Source(location, location.name)]
    else:
        try:
            names = location.walk()
        except (FileNotFoundError, NotADirectoryError) as error:
            known = ", ".join(sorted(READERS))
            raise ValueError(
                f"{error}; a manifest is a folder, a glob, or a file that ends in one of {known}, "
                f"not {extension!r}"
            ) from error
        found = [location.child(name) for name in names if not _is_hidden(name)]
        root = location.url
    files = sorted((f for f in found if _extension(f.name) in READERS), key=lambda file: file.url)
    kinds = {_extension(file.name) for file in files}
    if len(kinds) != 1:
        what = "files of several kinds" if kinds else "no file"
        raise ValueError(
            f"{location}: {what} that list or hold images ({', '.join(sorted(kinds or READERS))}): "
            "name one kind, such as *.parquet"
        )
    return [Source(file, file.url.removeprefix(root).lstrip("/")) for file in files]


def _read(sources: list[Source], wanted: Wanted, selection: Selection) -> Manifest:
    extension = _extension(sources[0].location.name)
    places = _places(sources[0], extension, wanted)
    if extension == ".parquet" and not places and selection.is_everything:
        return _given(sources, wanted)
    rows = _rows(sources, extension, wanted, places)
    data = encode(selection.of(rows))
    if extension in UNTYPED:
        data = typed(data)
    return _of_snapshot(data, places, selection, sources[0].location)


def _places(source: Source, extension: str, wanted: Wanted) -> tuple[str, ...]:
    """The columns that say where an image lies in its file; none where each is a file."""
    if extension == ".tar":
        return IN_TAR
    if extension != ".parquet":
        return ()
    with source.location.open() as file, damage_is_bad_input():
        holds = image_column(pq.read_schema(file), wanted.names)
    return () if holds is None else IN_PARQUET


def _given(sources: list[Source], wanted: Wanted) -> Manifest:
    """A manifest that stays where it is: the rows are read from the files that were named."""
    files: list[RowFile] = []
    names: dict[str, str] = {}
    for source in sources:
        with source.location.open() as file, damage_is_bad_input():
            metadata = pq.read_metadata(file)
        chosen = wanted.names.choose(metadata.schema.to_arrow_schema().names)
        if files and chosen != names:
            raise ValueError(f"{source.location} has {chosen}, the files before it have {names}")
        names = chosen
        files.append(RowFile(source.location, metadata.num_rows))
    given = RowSource(tuple(files), {"image_id": names["uri"], **names})
    with damage_is_bad_input():
        found = inspect(lambda: map(to_store, given.tables()))
    return Manifest(found.rows, found.digest, found.labels, (), (), None, given)


def _rows(
    sources: list[Source], extension: str, wanted: Wanted, places: tuple[str, ...]
) -> Iterator[pa.Table]:
    """Manifest rows of all files in order; tars are gone through side by side."""
    read = READERS[extension]
    if extension != ".tar":
        streams = ((source, read(source, wanted)) for source in sources)
        yield from _manifest_rows(streams, wanted.where, places)
        return
    with ThreadPoolExecutor(TARS_AT_ONCE) as pool:
        whole = pool.map(lambda source: list(read(source, wanted)), sources)
        yield from _manifest_rows(zip(sources, whole, strict=True), wanted.where, places)


def _manifest_rows(
    streams: Iterable[tuple[Source, Iterable[pa.Table]]], where: str | None, places: tuple[str, ...]
) -> Iterator[pa.Table]:
    condition = None if where is None else Condition(where)
    for source, tables in streams:
        for raw in tables:
            kept = raw
            if condition is not None:
                kept = without_views(raw).take(condition.rows(raw))
            yield normalised(kept, source.location.parent, places)


def _of_snapshot(
    data: bytes, places: tuple[str, ...], selection: Selection, origin: Location, ignored: int = 0
) -> Manifest:
    """A manifest that the run keeps; uris with secrets are kept in memory only."""
    stored = without_secrets(data)
    found = inspect(partial(rows_of, stored))
    given = None if stored is data else snapshot(RowFile(origin, found.rows, data), places)
    groups = found.groups if selection.is_everything else ()
    return Manifest(found.rows, found.digest, found.labels, groups, places, stored, given, ignored)


def _extension(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _label_of(path: str) -> str | None:
    first, slash, _ = path.partition("/")
    return first if slash else None


def _refuse_undecodable(location: Location, paths: Sequence[str]) -> None:
    """No row may be lost, and Arrow holds UTF-8 only."""
    bad = [path for path in (location.url, *paths) if not _is_utf8(path)]
    if bad:
        names = ", ".join(repr(path.encode(errors="surrogateescape")) for path in bad[:5])
        raise ManifestError(f"{len(bad)} file names are no UTF-8: rename {names}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
