"""An evaluation's directory, within the run that it is of: evaluate/<16 digits of its fingerprint>.

run.json                         what the evaluation is; created once, never changed
parts/part-00000042.parquet      numbers of some images; its presence is the commit
evaluation.parquet               one row an image, method and metric
methods.parquet  methods.png     means and their intervals, a row a method and metric
summary.json
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.locations import Location
from storage.runs import Run, fingerprint, open_or_create
from storage.schema import SCHEMA_VERSION, always, encode_parquet, field

_LEFT_OUT = "left_out"
_PART = re.compile(r"part-(\d{8,})\.parquet")


@dataclass(frozen=True)
class Part:
    """Numbers of a shard's images, and by row why others of its images have none."""

    numbers: pa.Table
    left_out: Mapping[int, str]


class Evaluation:
    """One evaluation of one run; `run` is its description and its summary."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.numbers = run.root.child("evaluation.parquet")
        self.methods = run.root.child("methods.parquet")
        self.plot = run.root.child("methods.png")

    def committed(self) -> set[int]:
        """The shards whose numbers are there."""
        names = self.run.root.child("parts").names()
        return {int(match[1]) for name in names if (match := _PART.fullmatch(name))}

    def publish(self, index: int, part: Part) -> bool:
        """Commit a shard's part: False if it was there already, and then this one is dropped.

        Raises StorageUnavailable.
        """
        left_out = {str(row): reason for row, reason in part.left_out.items()}
        metadata = {"run": self.run.id, _LEFT_OUT: json.dumps(left_out, sort_keys=True)}
        return self._part(index).create(encode_parquet(part.numbers, metadata))

    def read(self, index: int) -> Part:
        """A committed shard's part."""
        numbers = pq.read_table(io.BytesIO(self._part(index).read()))
        left_out = json.loads(numbers.schema.metadata[_LEFT_OUT.encode()])
        return Part(numbers, {int(row): reason for row, reason in left_out.items()})

    def _part(self, index: int) -> Location:
        return self.run.root.child("parts", f"part-{index:08d}.parquet")


def open_or_create_evaluation(run: Run, identity: Mapping[str, Any]) -> Evaluation:
    """The evaluation of `run` that `identity` describes: a new one, or the one that is there.

    `identity` is all that changes a number, as nested plain JSON.
    """
    name = fingerprint(identity)[:16]
    root = run.root.child("evaluate", name)
    return Evaluation(open_or_create(root, {"fingerprint_of": identity}))


def numbers() -> pa.Schema:
    """The schema of an evaluation's evaluation.parquet and parts. Key: (row, method, metric)."""
    fields = [
        always("row", pa.int64(), "row of the manifest, as in the explanations"),
        always("image_id", pa.string(), "the image's name"),
        always("target", pa.int32(), "class index that the maps explain"),
        always("method", pa.string(), "what made the map, as --methods names it"),
        always("metric", pa.string(), "which number, as docs/evaluation.md defines it"),
        field("value", pa.float64(), "the number; null where it says nothing of the image"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def methods() -> pa.Schema:
    """The schema of an evaluation's methods.parquet. Key: (method, metric)."""
    fields = [
        always("method", pa.string(), "what made the maps, as --methods names it"),
        always("metric", pa.string(), "which number, as docs/evaluation.md defines it"),
        field("better", pa.string(), "higher or lower; null where neither is by itself"),
        always("value", pa.float64(), "mean over images, of cost the median"),
        field("low", pa.float64(), "lower end of its 95% interval; null for a single image"),
        field("high", pa.float64(), "upper end of its 95% interval"),
        always("images", pa.int32(), "images that have the number"),
        always("reference", pa.string(), "the method that others are told against"),
        field("difference", pa.float64(), "value less the reference's, over images that have both"),
        field("difference_low", pa.float64(), "lower end of its 95% interval (paired bootstrap)"),
        field("difference_high", pa.float64(), "upper end of its 95% interval"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})
