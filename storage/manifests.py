"""The list of images: from a folder, a Parquet file or a CSV file to the same three columns."""

import io
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage import formats
from storage.digests import table_digest
from storage.locations import Location

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif"),
    *(".bmp", ".tif", ".tiff", ".avif", ".ppm"),
)


class ManifestError(ValueError):
    """The list of images is unusable; the message says what was found and what to change."""


@dataclass(frozen=True)
class Manifest:
    """The images of a run, in order.

    `table` has image_id (string, unique, never null), uri (string) and label (string or int64);
    `digest` is the sha256, as hex, of its rows, whatever they were read from; `ignored` counts a
    folder's files that are no images.
    """

    table: pa.Table
    digest: str
    ignored: int = 0


def read_folder(location: Location) -> Manifest:
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
            f"({' '.join(IMAGE_EXTENSIONS)})"
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
    return Manifest(table, table_digest(table), ignored=len(paths) - len(images))


def read_manifest(location: Location) -> Manifest:
    """The rows of a .parquet or .csv file: a uri, and where given an image_id and a label.

    Relative uris start at the file's own folder. Integer labels are int64, and so are floats that
    are all whole; other labels are text. Raises ManifestError, StorageUnavailable.
    """
    extension = posixpath.splitext(location.name)[1].lower()
    if extension not in formats.READERS:
        known = ", ".join(sorted(formats.READERS))
        raise ManifestError(f"{location}: a manifest ends in one of {known}, not {extension!r}")
    try:
        raw = location.attempt(lambda: formats.read(location, extension))
    except (OSError, ValueError, ImportError) as error:
        raise ManifestError(f"cannot read the manifest: {error}") from error
    if len(raw) == 0:
        raise ManifestError(f"{location} has no rows: list at least one image")
    try:
        table = formats.normalised(raw, location.parent)
    except (pa.ArrowException, ValueError) as error:
        raise ManifestError(f"{location}: {error}") from error
    return Manifest(table, table_digest(table))


def read_rows(location: Location, start: int, stop: int) -> pa.Table:
    """Rows start to stop (exclusive) of a planned manifest.parquet, reading no others' groups.

    Raises ValueError for rows that are not there, StorageUnavailable.
    """

    def read() -> pa.Table:
        with location.open() as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            ends = np.cumsum(sizes)
            if not 0 <= start < stop <= parquet.metadata.num_rows:
                rows = parquet.metadata.num_rows
                raise ValueError(f"rows {start} to {stop} were asked for, it has {rows}")
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            table = parquet.read_row_groups(range(first, last + 1))
        return table.slice(start - int(ends[first] - sizes[first]), stop - start)

    return location.attempt(read)


def encode(manifest: Manifest, rows_per_group: int) -> bytes:
    """The manifest as Parquet, in groups of as many rows as a shard reads at once."""
    table = manifest.table.replace_schema_metadata({"digest": manifest.digest})
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=["label"],
        row_group_size=rows_per_group,
    )
    return sink.getvalue()


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
