"""Boxes of images, from a table that a user names: where what matters is known to lie."""

import io
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from storage.digests import table_digest
from storage.formats import damage_is_bad_input
from storage.json_lines import refuse_fatal
from storage.locations import Location

CORNERS = ("left", "top", "right", "bottom")
# Given beforehand, as Arrow guesses: an id 007 stays one.
SCHEMA = pa.schema([("image_id", pa.string()), *((name, pa.float64()) for name in CORNERS)])
Box = tuple[float, float, float, float]


class BoxesError(ValueError):
    """The file holds no boxes as they are wanted; the message says what to do."""


@dataclass(frozen=True)
class Boxes:
    """Boxes by image_id, as (left, top, right, bottom) in pixels of the file as stored."""

    of: Mapping[str, Sequence[Box]]
    digest: str

    def only(self, images: Collection[str]) -> "Boxes":
        """Those of some images; the digest stays the file's. Raises BoxesError for none."""
        chosen = {name: boxes for name, boxes in self.of.items() if name in images}
        if not chosen:
            raise BoxesError(
                f"none of {len(images)} images has a box: an image_id of the run is "
                f"{next(iter(images), None)!r}, one of the boxes {next(iter(self.of), None)!r}"
            )
        return Boxes(chosen, self.digest)


def read_boxes(location: Location) -> Boxes:
    """The boxes of a Parquet, CSV or JSON-lines file with columns image_id and CORNERS.

    An image may have several, or none. Raises BoxesError, FileNotFoundError, StorageUnavailable.
    """
    suffix = next((known for known in READERS if location.name.lower().endswith(known)), None)
    if suffix is None:
        raise BoxesError(f"{location} must end in {', '.join(READERS)}")
    data = location.read()
    try:
        with damage_is_bad_input():
            table = READERS[suffix](data).select(SCHEMA.names).cast(SCHEMA)
    except (KeyError, ValueError) as error:
        rule = f"{location} needs columns image_id, {', '.join(CORNERS)}, the latter in pixels"
        raise BoxesError(f"{rule}; {' '.join(str(error).split())}") from error
    found: dict[str, list[Box]] = defaultdict(list)
    for name, *corners in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if name is None or None in corners or not _is_box(*corners):
            rule = "left < right and top < bottom"
            raise BoxesError(f"{location}: {corners} of {name!r} is no box: {rule}")
        found[name].append((corners[0], corners[1], corners[2], corners[3]))
    return Boxes(dict(found), table_digest(table))


def _is_box(left: float, top: float, right: float, bottom: float) -> bool:
    return left < right and top < bottom


def _read_parquet(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data), columns=SCHEMA.names)


def _read_csv(data: bytes) -> pa.Table:
    types = {field.name: field.type for field in SCHEMA}
    options = pa_csv.ConvertOptions(include_columns=SCHEMA.names, column_types=types)
    return pa_csv.read_csv(io.BytesIO(data), convert_options=options)


def _read_json_lines(data: bytes) -> pa.Table:
    refuse_fatal(data)
    return pa_json.read_json(io.BytesIO(data), parse_options=pa_json.ParseOptions(SCHEMA))


READERS: Mapping[str, Callable[[bytes], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
}
