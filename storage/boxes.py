"""Boxes or masks of images, from a table that a user names: where what matters is known to lie."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from storage.formats import damage_is_bad_input
from storage.json_lines import refuse_fatal
from storage.locations import Location

CORNERS = ("left", "top", "right", "bottom")
# Given beforehand, as Arrow guesses: an id 007 stays one.
SCHEMA = pa.schema([("image_id", pa.string()), *((name, pa.float64()) for name in CORNERS)])
MASKS = pa.schema([("image_id", pa.string()), ("mask", pa.binary())])
Box = tuple[float, float, float, float]


class BoxesError(ValueError):
    """The file holds no boxes as they are wanted; the message says what to do."""


@dataclass(frozen=True)
class Boxes:
    """By image_id, boxes (left, top, right, bottom) in pixels of the file as stored, or a mask as
    an encoded image of the same size, where what is not 0 is inside."""

    of: Mapping[str, Sequence[Box]]
    masks: Mapping[str, bytes]
    digest: str

    def only(self, images: Collection[str]) -> "Boxes":
        """Those of some images; the digest stays the file's. Raises BoxesError for none."""
        chosen = {name: boxes for name, boxes in self.of.items() if name in images}
        masks = {name: mask for name, mask in self.masks.items() if name in images}
        if not chosen and not masks:
            known = min([*self.of, *self.masks], default=None)
            raise BoxesError(
                f"none of {len(images)} images has a box or mask: an image_id of the run is "
                f"{min(images, default=None)!r}, one of the file {known!r}"
            )
        return Boxes(chosen, masks, self.digest)


def read_boxes(location: Location) -> Boxes:
    """The boxes of a Parquet, CSV or JSON-lines file with columns image_id and CORNERS, or the
    masks of a Parquet file with columns image_id and mask.

    An image may have several boxes, or none. Raises BoxesError, FileNotFoundError,
    StorageUnavailable.
    """
    suffix = next((known for known in READERS if location.name.lower().endswith(known)), None)
    if suffix is None:
        raise BoxesError(f"{location} must end in {', '.join(READERS)}")
    data = location.read()
    try:
        with damage_is_bad_input():
            table = READERS[suffix](data)
            schema = MASKS if "mask" in table.column_names else SCHEMA
            table = table.select(schema.names).cast(schema)
    except (KeyError, ValueError) as error:
        rule = (
            f"{location} needs columns image_id, {', '.join(CORNERS)}, the latter in pixels, or "
            "image_id and mask in Parquet"
        )
        raise BoxesError(f"{rule}; {' '.join(str(error).split())}") from error
    digest = hashlib.sha256(data).hexdigest()
    if schema is MASKS:
        return Boxes({}, _masks(table, location), digest)
    return Boxes(_boxes(table, location), {}, digest)


def _boxes(table: pa.Table, location: Location) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = defaultdict(list)
    for name, *corners in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if name is None or None in corners or not _is_box(*corners):
            rule = "left < right and top < bottom"
            raise BoxesError(f"{location}: {corners} of {name!r} is no box: {rule}")
        found[name].append((corners[0], corners[1], corners[2], corners[3]))
    return dict(found)


def _masks(table: pa.Table, location: Location) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, mask in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if name is None or mask is None or name in found:
            raise BoxesError(f"{location}: an image has one mask, and {name!r} has none or two")
        found[name] = mask
    return found


def _is_box(left: float, top: float, right: float, bottom: float) -> bool:
    return left < right and top < bottom


def _read_parquet(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


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
