"""A run's directory: what it is, what is committed, where its results lie.

run.json                              what the run is; created once, never changed
attempts/<n>.json                     one for each start of a driver
manifest.parquet                      the rows as planned
explanations/part-00000042.parquet    the presence of a part is the commit of its shard
breadcrumbs/<n>.json                  which rows of shard n were in hand, once it has killed
class_heatmaps.parquet  class_heatmaps/<class>.png  summary.json
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.formats import damage_is_bad_input
from storage.locations import Location
from storage.names import file_name
from storage.schema import SCHEMA_VERSION
from storage.times import written

# States of a run whose every row is written.
FINISHED = ("complete", "failed")
_PART = re.compile(r"part-(\d{8,})\.parquet")
_ATTEMPT = re.compile(r"(\d+)\.json")


class FingerprintMismatch(ValueError):  # noqa: N818 - it is a comparison's outcome
    """The directory holds another run; the message lists every setting that differs."""


class NotARun(ValueError):  # noqa: N818 - it is a statement about a directory
    """The directory holds no run, or a run.json that this program did not write."""


@dataclass(frozen=True)
class Start:
    """A driver's start: its number, what it noted, and when, by the store's clock if that tells."""

    number: int
    info: Mapping[str, Any]
    at: float | None


class Run:
    """One run at one location, and its description as run.json has it."""

    def __init__(self, root: Location, description: Mapping[str, Any]) -> None:
        self.root = root
        self.description = description
        self.manifest = root.child("manifest.parquet")
        self.summary = root.child("summary.json")
        self.class_heatmaps = root.child("class_heatmaps.parquet")

    @property
    def id(self) -> str:
        """The first 16 hex digits of the fingerprint, as in the column `run`."""
        return str(self.description["fingerprint"])[:16]

    def begin_attempt(self, info: Mapping[str, Any]) -> int:
        """Note a driver's start under the next number, from 1; races end with different numbers."""
        attempts = self.root.child("attempts")
        found = [match for name in attempts.names() if (match := _ATTEMPT.fullmatch(name))]
        number = max((int(match[1]) for match in found), default=0) + 1
        while not attempts.child(f"{number}.json").create(_encode(info)):
            number += 1
        return number

    def last_attempt(self) -> "Start | None":
        """The last driver's start; None before the first."""
        at = written(self.root.child("attempts"))
        number = max((int(m[1]) for name in at if (m := _ATTEMPT.fullmatch(name))), default=0)
        info = _read_json(self.root.child("attempts", f"{number}.json")) if number else None
        return None if info is None else Start(number, info, at.get(f"{number}.json"))

    def part(self, index: int) -> Location:
        """Where the part of shard `index` is, or is to be."""
        return self.root.child(part_name(index))

    def committed(self) -> set[int]:
        """The shards whose parts are there: one listing, other names ignored."""
        names = self.root.child("explanations").names()
        return {int(match[1]) for name in names if (match := _PART.fullmatch(name))}

    def committed_at(self) -> dict[int, float | None]:
        """The same, and when each part was written, as `times.written` tells it."""
        found = written(self.root.child("explanations"))
        return {int(match[1]): at for n, at in found.items() if (match := _PART.fullmatch(n))}

    def publish(self, index: int, data: bytes) -> bool:
        """Commit a shard: False if its part was there already, and then this one is discarded.

        Raises StorageUnavailable, also where writing is refused: that is no property of a shard.
        """
        return self.part(index).create(data)

    def replace_part(self, index: int, data: bytes) -> None:
        """Put a new generation of a committed part in its place, as a whole.

        Raises StorageUnavailable as `publish` does.
        """
        self.part(index).replace(data)

    def leave_breadcrumb(self, index: int, start: int, stop: int) -> None:
        """Say which rows of shard `index`, from `start` to `stop` (exclusive), are in hand now."""
        self._breadcrumb(index).replace(_encode({"start": start, "stop": stop}))

    def follow_breadcrumb(self, index: int) -> range | None:
        """The rows of a shard that were in hand, as last left, which is removed; None if none."""
        left = _read_json(self._breadcrumb(index))
        self.sweep_breadcrumb(index)
        return None if left is None else range(left["start"], left["stop"])

    def sweep_breadcrumb(self, index: int) -> None:
        """Remove what was left of a shard, if anything."""
        self._breadcrumb(index).delete()

    def _breadcrumb(self, index: int) -> Location:
        return self.root.child("breadcrumbs", f"{index:08d}.json")

    def read_part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A committed part's rows, or only some of their columns; metadata is the schema's."""
        part = self.part(index)

        def read() -> pa.Table:
            with part.open() as file:
                return pq.read_table(file, columns=columns)

        return part.attempt(read)

    def read_part_metadata(self, index: int) -> dict[str, str]:
        """What a committed part says of itself: its footer alone is read.

        Raises ValueError where it is damaged.
        """
        part = self.part(index)

        def read() -> dict[bytes, bytes]:
            with part.open() as file, damage_is_bad_input():
                return pq.read_schema(file).metadata or {}

        return {key.decode(): value.decode() for key, value in part.attempt(read).items()}

    def read_class_heatmaps(self) -> pa.Table:
        """The table of class heatmaps."""
        return pq.read_table(io.BytesIO(self.class_heatmaps.read()))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Put summary.json in place of the one before."""
        self.summary.replace(_encode(summary))

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json as it stands; None before there is one."""
        return _read_json(self.summary)

    def class_heatmap_picture(self, name: str) -> Location:
        """Where the picture of a class goes; any name becomes a file name of its own."""
        return self.root.child("class_heatmaps", f"{file_name(name)}.png")


def open_or_create(root: Location, description: Mapping[str, Any]) -> Run:
    """The run at `root`: a new one, or the one that is there if it is the same.

    `description` needs "fingerprint_of": all that changes a row, as nested plain JSON; its
    fingerprint, the schema version and the time are added. On a resume the description is the
    stored one, whose shard size rules. Raises FingerprintMismatch for another run's directory,
    NotARun where run.json is none.
    """
    described = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "schema_version": SCHEMA_VERSION,
        **with_fingerprint(description),
    }
    if not root.child("run.json").create(_encode(described)):
        stored = read_description(root)
        if stored is None:
            raise NotARun(f"{root}: run.json was there and is gone: is somebody removing it?")
        compare(root, stored, described)
        described = stored
    return Run(root, described)


def open_run(root: Location) -> Run:
    """The run at `root`. Raises NotARun where there is none."""
    description = read_description(root)
    if description is None:
        raise NotARun(f"{root} holds no run (no run.json): name the --out of `saliency explain`")
    return Run(root, description)


def finished_summary(run: Run) -> dict[str, Any]:
    """summary.json of a finished run. Raises ValueError where it is not finished."""
    summary = run.read_summary() or {"state": "not started"}
    if summary["state"] not in FINISHED or "parts_digest" not in summary:
        raise ValueError(
            f"{run.root} is not finished (state: {summary['state']}); the `saliency explain` that "
            "made it does the rest"
        )
    return summary


def read_description(root: Location) -> dict[str, Any] | None:
    """run.json at `root`; None where there is none, NotARun where it describes no run."""
    description = _read_json(root.child("run.json"))
    if description is not None and not isinstance(description.get("fingerprint_of"), dict):
        raise NotARun(f"{root}: run.json has no fingerprint_of, so it is not of this program")
    return description


def fingerprint(of: Mapping[str, Any]) -> str:
    """sha256, as hex, of plain JSON with sorted keys and no spaces."""
    text = json.dumps(of, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_fingerprint(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description with the fingerprint of its "fingerprint_of"."""
    return {**description, "fingerprint": fingerprint(description["fingerprint_of"])}


def part_name(index: int) -> str:
    """explanations/part-00000042.parquet for 42."""
    return f"explanations/part-{index:08d}.parquet"


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What a run and a command have different, one line a setting."""
    return [
        f"  {key}: run has {here}, this command has {there}"
        for key, here, there in unequal(stored, wanted)
    ]


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Settings, such as model.block, that differ, with both values as JSON, "nothing" if none."""
    here, there = dict(_flat(one)), dict(_flat(other))
    return [
        (key, here.get(key, "nothing"), there.get(key, "nothing"))
        for key in sorted(here | there)
        if here.get(key) != there.get(key)
    ]


def compare(root: Location, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise FingerprintMismatch where a run's description is not that of what a command asks."""
    if stored["fingerprint"] == wanted["fingerprint"]:
        return
    lines = differences(stored["fingerprint_of"], wanted["fingerprint_of"])
    edited = "  fingerprint: run.json was edited after it was made"
    advice = "Use another --out, or the run's own settings."
    told = [f"{root} holds a run with other settings:", *(lines or [edited]), advice]
    raise FingerprintMismatch("\n".join(told))


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys as model.block, values as JSON."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(inner, sort_keys=True)


def _encode(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _read_json(location: Location) -> dict[str, Any] | None:
    try:
        data = location.read()
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise NotARun(f"{location} is no JSON ({error}): was it edited?") from error
    if not isinstance(value, dict):
        raise NotARun(f"{location} holds no JSON object: was it edited?")
    return value
