"""What an audit found: verdicts over all classes, and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from explainer.audit.evidence import ClassEvidence, CueEvidence
from explainer.audit.significance import Estimate
from explainer.audit.statistics import MapSummary
from explainer.audit.verdict import Finding, findings, worst
from explainer.audit.verdicts import Verdict
from explainer.classes import ClassNames
from jobs.audit_worker import PROPERTIES
from storage import audit_schema, schema
from storage.audits import Audit, encode
from storage.locations import Location
from storage.parts import in_order

# What this audit cannot see, whatever it finds; docs/audit.md says more.
BLIND_SPOTS = (
    "what the whole image carries besides colours and fine textures: blur, compression, size",
    "content that varies in its pixels and in its place, such as a kind of background",
    "a cue on fewer than about one in twenty of a class's images that were looked at",
    "a cue that is on nearly all images of a class at varying places: it looks like an object",
    "classes that share a cue, where pasting it does not make one of them",
)
READERS = 16
# How far from one half the AUC of a property is that nearly tells a class from all others.
ODD = 0.45
OF_MAPS = tuple(field.name for field in fields(MapSummary))


@dataclass(frozen=True)
class Report:
    """The findings, severest first, the worst of each class, and what files are told by.

    `rows` are by class the manifest's rows that its evidence counts, `statistics` what
    dataclasses.asdict made of ClassStatistics, of classes that have any.
    """

    names: ClassNames
    findings: Sequence[Finding]
    rows: Mapping[int, Sequence[int]]
    statistics: Mapping[int, Mapping[str, Any]]

    def only(self, targets: set[int]) -> "Report":
        """What is said of some of the classes."""
        return Report(
            self.names,
            [finding for finding in self.findings if finding.evidence.target in targets],
            {target: rows for target, rows in self.rows.items() if target in targets},
            {target: of for target, of in self.statistics.items() if target in targets},
        )

    def name(self, target: int) -> str:
        """A class's name."""
        return self.names.names[target]

    @property
    def of_class(self) -> Mapping[int, Verdict]:
        """The worst verdict on each class."""
        return worst(self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How many classes have each verdict as their worst, from the worst on."""
        verdicts = list(self.of_class.values())
        return {str(v): verdicts.count(v) for v in Verdict if v in verdicts}

    @property
    def odd(self) -> dict[str, dict[str, float]]:
        """By class the properties of files that nearly tell it from all others, and their AUC."""
        found = {
            self.name(target): {n: a for n, a in of["properties"].items() if abs(a - 0.5) >= ODD}
            for target, of in self.statistics.items()
        }
        return {name: properties for name, properties in found.items() if properties}


def judge(audit: Audit, names: ClassNames, targets: set[int]) -> Report:
    """Verdicts on classes whose evidence is there, over all of them at once."""
    order = sorted(targets)
    stored = dict(zip(order, in_order(audit.read, order, READERS), strict=True))
    rows = {target: plain.pop("rows") for target, plain in stored.items()}
    statistics = {target: plain.pop("statistics") for target, plain in stored.items()}
    found = findings([ClassEvidence.of(plain) for plain in stored.values()])
    return Report(names, found, rows, {t: of for t, of in statistics.items() if of is not None})


def write(audit: Audit, report: Report, grid: tuple[int, int]) -> None:
    """Write all tables, in place of those before."""
    rows = [_row(report, finding) for finding in report.findings]
    _replace(audit, audit.findings, rows, audit_schema.findings())
    _replace(audit, audit.carriers, _carriers(report, grid), audit_schema.carriers(grid))
    described = [_statistics(report, target, of) for target, of in report.statistics.items()]
    _replace(audit, audit.statistics, described, audit_schema.statistics(OF_MAPS, PROPERTIES))
    summary = {
        "audit": audit.run.id,
        "classes": report.counts,
        "findings": rows,
        "odd_properties": report.odd,
        "cannot_see": BLIND_SPOTS,
    }
    audit.findings_json.replace(encode(summary))


def _replace(audit: Audit, place: Location, rows: list[dict[str, Any]], columns: pa.Schema) -> None:
    table = pa.Table.from_pylist(rows, schema=columns)
    place.replace(schema.encode_parquet(table, {"audit": audit.run.id}))


def _statistics(report: Report, target: int, plain: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "target": target,
        "target_name": report.name(target),
        **{name: plain[name] for name in ("largest_z", "largest_cell", "p_value")},
        **plain["of_class"],
        **{f"{name}_of_others": value for name, value in plain["of_others"].items()},
        **{f"auc_{name}": value for name, value in plain["properties"].items()},
    }


def _row(report: Report, finding: Finding) -> dict[str, Any]:
    evidence = finding.evidence
    row: dict[str, Any] = {
        "target": evidence.target,
        "target_name": report.name(evidence.target),
        "cue": finding.cue,
        "verdict": str(finding.verdict),
        "reason": finding.reason,
        "severity": finding.severity,
        "q_value": finding.q_value,
        "accuracy_without": finding.accuracy_without,
    }
    counted = ("images", "explained", "candidates", "passes", "apart")
    row |= {name: getattr(evidence, name) for name in counted}
    cue = finding.of_cue
    return row if cue is None else row | _of_cue(cue)


def _of_cue(cue: CueEvidence) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": cue.kind,
        "origin": cue.origin,
        "is_fixed": cue.is_fixed,
        "area": cue.area,
        "carriers": len(cue.carriers),
        "gap": cue.gap,
        "accuracy_of_carriers": cue.accuracy_of_carriers.value,
        "accuracy_of_others": cue.accuracy_of_others.value,
        **_estimate("carrier_share", cue.carrier_share),
    }
    if cue.paste is not None:
        row |= {f"flips_{name.replace(' ', '_')}": v for name, v in cue.paste.controls.items()}
        row |= {"flips": cue.paste.flips, "p_value": cue.paste.p_value}
        row |= _estimate("lift", cue.paste.lift) | _estimate("shift", cue.paste.shift)
        row |= _estimate("restored", cue.paste.restored)
        for name, estimate in (("gained", cue.paste.gained), ("pooled", cue.paste.pooled)):
            row |= _estimate(name, estimate) if estimate else {}
    if cue.removal is not None:
        row |= {"kept_without": cue.removal.without, "kept_elsewhere": cue.removal.elsewhere}
        row |= _estimate("drop", cue.removal.drop) | _estimate("cost", cue.removal.cost)
    if cue.others is not None:
        row |= _estimate("deficit", cue.others.deficit) | _estimate("excess", cue.others.excess)
        if cue.others.excess_cost is not None:
            row |= _estimate("excess_cost", cue.others.excess_cost)
    return row


def _estimate(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _carriers(report: Report, grid: tuple[int, int]) -> list[dict[str, Any]]:
    cells = range(grid[0] * grid[1])
    return [
        {
            "target": finding.evidence.target,
            "cue": finding.cue,
            "verdict": str(finding.verdict),
            "row": report.rows[finding.evidence.target][carrier.image],
            "likeness": carrier.likeness,
            "cells": [cell in carrier.cells for cell in cells],
        }
        for finding in report.findings
        if (cue := finding.of_cue) is not None
        for carrier in cue.carriers
    ]
