"""An audit's directory, within the run that it audits: audit/<first 16 digits of its fingerprint>.

run.json                              what the audit is; created once, never changed
classes/00000042.json                 the evidence on a class; its presence is the commit
evidence/<class>-<cue>.png            what the evidence looks like
breadcrumbs/<n>.json                  which images were in hand, once a class has killed
findings.parquet  findings.json  carriers.parquet  statistics.parquet  summary.json
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from storage.locations import Location
from storage.runs import Run, fingerprint, open_or_create, open_run

_CARRIERS = "/carriers.parquet"
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

    def _class(self, target: int) -> Location:
        return self.run.root.child("classes", f"{target:08d}.json")


def open_or_create_audit(run: Run, identity: Mapping[str, Any]) -> Audit:
    """The audit of `run` that `identity` describes: a new one, or the one that is there.

    `identity` is all that changes a finding, as nested plain JSON.
    """
    name = fingerprint(identity)[:16]
    return Audit(open_or_create(run.root.child("audit", name), {"fingerprint_of": identity}))


def encode(value: Mapping[str, Any]) -> bytes:
    """A JSON object as it is stored."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def audits_of(run: Run, parts_digest: str) -> list[Audit]:
    """The audits of a run that have told what they found, of parts with this digest, by their
    names. Raises NotARun where one's run.json is none, StorageUnavailable."""
    folder = run.root.child("audit")
    try:
        names = {path.partition("/")[0] for path in folder.walk() if path.endswith(_CARRIERS)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [open_run(folder.child(name)) for name in sorted(names)]
    return [
        Audit(of)
        for of in found
        if of.description["fingerprint_of"].get("parts_digest") == parts_digest
    ]
