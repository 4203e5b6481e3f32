"""An audit's directory, within the run that it audits: audit/<first 16 digits of its fingerprint>.

run.json                              what the audit is; created once, never changed
classes/00000042.json                 the evidence on a class; its presence is the commit
evidence/<class>-<cue>.png            what the evidence looks like
breadcrumbs/<n>.json                  which images were in hand, once a class has killed
findings.parquet  findings.json  carriers.parquet  statistics.parquet  summary.json
"""

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from storage.exports import entries
from storage.locations import Location
from storage.runs import Run, fingerprint, open_or_create, read_description

_CLASS = re.compile(r"(\d{8,})\.json")


class Audit:
    """One audit of one run; `run` is its description, its summary and its breadcrumbs."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.findings = run.root.child("findings.parquet")
        self.findings_json = run.root.child("findings.json")
        self.statistics = run.root.child("statistics.parquet")
        self.carriers = run.root.child("carriers.parquet")

    def committed(self) -> set[int]:
        """The classes whose evidence is there."""
        names = self.run.root.child("classes").names()
        return {int(match[1]) for name in names if (match := _CLASS.fullmatch(name))}

    def publish(self, target: int, evidence: Mapping[str, Any]) -> bool:
        """Commit a class's evidence: False if it was there already, and then this is discarded."""
        return self._class(target).create(encode(evidence))

    def read(self, target: int) -> dict[str, Any]:
        """A committed class's evidence."""
        content: dict[str, Any] = json.loads(self._class(target).read())
        return content

    def picture(self, target: int, cue: int) -> Location:
        """Where the picture of a cue's evidence goes."""
        return self.run.root.child("evidence", f"{target:05d}-{cue}.png")

    def read_table(self, place: Location) -> list[dict[str, Any]]:
        """The rows of one of its tables."""
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(place.read())).to_pylist()
        return rows

    def _class(self, target: int) -> Location:
        return self.run.root.child("classes", f"{target:08d}.json")


def open_or_create_audit(run: Run, identity: Mapping[str, Any]) -> Audit:
    """The audit of `run` that `identity` describes: a new one, or the one that is there.

    `identity` is all that changes a finding, as nested plain JSON.
    """
    name = fingerprint(identity)[:16]
    return Audit(open_or_create(run.root.child("audit", name), {"fingerprint_of": identity}))


def last_finished(run: Run, parts_digest: str) -> Audit | None:
    """Of the complete audits of these parts the one that ended last; None where there is none."""
    ended: list[tuple[str, str, Run]] = []
    for name in entries(run.root.child("audit")):
        place = run.root.child("audit", name)
        try:
            description = read_description(place)
        except NotADirectoryError:  # a file that somebody put there
            continue
        if description is None:
            continue
        audited = Run(place, description)
        summary = audited.read_summary() or {}
        of_parts = description["fingerprint_of"].get("parts_digest")
        if summary.get("state") == "complete" and of_parts == parts_digest:
            ended.append((str(summary["ended"]), name, audited))
    return Audit(max(ended, key=lambda each: each[:2])[2]) if ended else None


def encode(value: Mapping[str, Any]) -> bytes:
    """A JSON object as it is stored."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
