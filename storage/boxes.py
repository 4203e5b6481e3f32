"""Boxes of images, from a table that a user names: where what matters is known to lie."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from storage.digests import table_digest
from storage.locations import Location

CORNERS = ("left", "top", "right", "bottom")
READERS = {
    ".parquet": pq.read_table,
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
}
Box = tuple[float, float, float, float]


class BoxesError(ValueError):
    """The file holds no boxes as they are wanted; the message says what to do."""


@dataclass(frozen=True)
class Boxes:
    """Boxes by image_id, as (left, top, right, bottom) in pixels of the file as stored."""

    of: Mapping[str, Sequence[Box]]
    digest: str


def read_boxes(location: Location) -> Boxes:
    """The boxes of a Parquet, CSV or JSON-lines file with columns image_id and CORNERS.

    An image may have several, or none. Raises BoxesError, FileNotFoundError, StorageUnavailable.
    """
    suffix = next((known for known in READERS if location.name.lower().endswith(known)), None)
    if suffix is None:
        raise BoxesError(f"{location} must end in {', '.join(READERS)}")
    data = location.read()
    try:
        table = READERS[suffix](io.BytesIO(data)).select(["image_id", *CORNERS])
        table = table.cast(
            pa.schema([("image_id", pa.string()), *((name, pa.float64()) for name in CORNERS)])
        )
    except (pa.ArrowException, KeyError, ValueError) as error:
        rule = f"{location} needs columns image_id, {', '.join(CORNERS)}, the latter in pixels"
        raise BoxesError(f"{rule}; {' '.join(str(error).split())}") from error
    found: dict[str, list[Box]] = defaultdict(list)
    for name, *corners in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if name is None or None in corners or not _is_box(*corners):
            raise BoxesError(
                f"{location}: {corners} of {name!r} is no box: left < right, top < bottom"
            )
        found[name].append((corners[0], corners[1], corners[2], corners[3]))
    return Boxes(dict(found), table_digest(table))


def _is_box(left: float, top: float, right: float, bottom: float) -> bool:
    return left < right and top < bottom
