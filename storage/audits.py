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
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
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

    def table(self, place: Location) -> pa.Table:
        """One of its tables: findings, statistics or carriers."""
        return pq.read_table(io.BytesIO(place.read()))

    def _class(self, target: int) -> Location:
        return self.run.root.child("classes", f"{target:08d}.json")


def open_or_create_audit(run: Run, identity: Mapping[str, Any]) -> Audit:
    """The audit of `run` that `identity` describes: a new one, or the one that is there.

    `identity` is all that changes a finding, as nested plain JSON.
    """
    name = fingerprint(identity)[:16]
    return Audit(open_or_create(run.root.child("audit", name), {"fingerprint_of": identity}))


def chosen_audit(run: Run, parts_digest: str, wanted: str | None = None) -> Audit | None:
    """The audit of a run that is `wanted`, else of those of its present parts the one that ended
    last, a complete one if there is one; None where there is none.

    Raises ValueError for an audit that is not there, has not ended or is of other parts.
    """
    found: dict[tuple[bool, str, str], Audit] = {}
    problems = {}
    for name, audit in _begun(run):
        summary = audit.run.read_summary() or {}
        of = audit.run.description["fingerprint_of"].get("parts_digest")
        if of != parts_digest:
            problems[name] = f"is of parts with the digest {of}, and the run has {parts_digest}"
        elif "ended" not in summary or "findings.parquet" not in audit.run.root.names():
            problems[name] = "has not ended: the `saliency audit` that began it does the rest"
        else:
            found[summary["state"] == "complete", summary["ended"], name] = audit
    if wanted is not None:
        of_name = {key[-1]: audit for key, audit in found.items()}
        if wanted not in of_name:
            why = problems.get(wanted, f"is not there; there is {', '.join(of_name) or 'none'}")
            raise ValueError(f"audit {wanted} of {run.root} {why}")
        return of_name[wanted]
    return found[max(found)] if found else None


def encode(value: Mapping[str, Any]) -> bytes:
    """A JSON object as it is stored."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def audits_of(run: Run, parts_digest: str) -> list[Audit]:
    """The audits of a run that have told what they found, of parts with this digest, by their
    names. Raises NotARun where one's run.json is none, StorageUnavailable."""
    return [
        audit
        for _, audit in _begun(run)
        if audit.run.description["fingerprint_of"].get("parts_digest") == parts_digest
        and audit.carriers.name in audit.run.root.names()
    ]


def _begun(run: Run) -> Iterator[tuple[str, Audit]]:
    """Every audit of a run, by its name."""
    for name in entries(run.root.child("audit")):
        place = run.root.child("audit", name)
        try:
            description = read_description(place)
        except NotADirectoryError:  # a file that somebody put there
            continue
        if description is not None:
            yield name, Audit(Run(place, description))
