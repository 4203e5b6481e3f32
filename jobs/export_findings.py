"""What an audit found, as exports hold it: its cues, and which images carry them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from explainer.audit.verdicts import ACCUSED
from storage.audits import Audit, chosen_audit
from storage.runs import Run
from storage.schema import CONTENT_DIGEST


@dataclass(frozen=True)
class Cue:
    """A finding that has a cue; `row` is its line of findings.parquet."""

    row: Mapping[str, Any]

    @property
    def key(self) -> tuple[int, int]:
        """Class index, and number of the cue."""
        return int(self.row["target"]), int(self.row["cue"])

    @property
    def verdict(self) -> str:
        """The verdict as one word, for tags and names of files: not-testable. What it advises after
        a colon is left out."""
        return str(self.row["verdict"]).partition(":")[0].replace(" ", "-")

    @property
    def is_accused(self) -> bool:
        """Whether the class may rest on it: neither cleared nor untestable."""
        return self.row["verdict"] in ACCUSED

    @property
    def name(self) -> str:
        """Such as pentagon cue 0."""
        return f"{self.row['target_name']} cue {self.row['cue']}"


@dataclass(frozen=True)
class Carrier:
    """An image that holds a cue: how like it is, and which cells, row-major, the cue covers."""

    row: int
    cue: Cue
    likeness: float
    cells: tuple[bool, ...]


@dataclass(frozen=True)
class Found:
    """An audit's cues, severest first, and their carriers.

    `missing` counts the classes that it has not examined; `digest` is that of both tables.
    """

    audit: str
    digest: str
    missing: int
    cues: tuple[Cue, ...]
    carriers: tuple[Carrier, ...]

    @cached_property
    def by_row(self) -> Mapping[int, list[Carrier]]:
        """The carriers by their row of the manifest, severest cue first."""
        result: dict[int, list[Carrier]] = {}
        for carrier in self.carriers:
            result.setdefault(carrier.row, []).append(carrier)
        return result

    @property
    def told(self) -> str:
        """What it is, on one line."""
        lacks = f"; it is incomplete: {self.missing} classes are not examined"
        return f"{self.audit}{lacks if self.missing else ''}"


def find(run: Run, parts_digest: str, wanted: str | None) -> Found | None:
    """The audit of a run that is wanted, or the one that ended last; None where there is none.

    Raises ValueError where what is wanted is not there, has not ended or is of other parts.
    """
    audit = chosen_audit(run, parts_digest, wanted)
    return None if audit is None else _read(audit)


def _read(audit: Audit) -> Found:
    summary = audit.run.read_summary() or {}
    tables = [audit.table(place) for place in (audit.findings, audit.carriers)]
    digests = [table.schema.metadata[CONTENT_DIGEST.encode()] for table in tables]
    cues = {
        cue.key: cue
        for cue in (Cue(row) for row in tables[0].to_pylist() if row["cue"] is not None)
    }
    order = {key: place for place, key in enumerate(cues)}
    carriers = [
        Carrier(row["row"], cues[row["target"], row["cue"]], row["likeness"], tuple(row["cells"]))
        for row in tables[1].to_pylist()
    ]
    carriers.sort(key=lambda carrier: (order[carrier.cue.key], -carrier.likeness, carrier.row))
    return Found(
        audit.run.root.name,
        sha256(b"".join(digests)).hexdigest(),
        int(summary["classes_missing"]),
        tuple(cues.values()),
        tuple(carriers),
    )
