"""What an audit found: verdicts over all classes, their tables, and what is told of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from explainer import VitClassifier
from explainer.audit.evidence import ClassEvidence, CueEvidence
from explainer.audit.statistics import MapSummary
from explainer.audit.verdict import Finding, Verdict, findings, worst
from explainer.classes import ClassNames
from jobs.audit_worker import PROPERTIES
from jobs.config import AuditConfig, Exit
from jobs.summary import Attempt, now
from storage import audit_schema, schema
from storage.audits import Audit, encode

# What this audit cannot see, whatever it finds; docs/audit.md says more.
BLIND_SPOTS = (
    "what the whole image carries: tint, blur, brightness, compression, size",
    "content that varies in its pixels and in its place, such as a kind of background",
    "a cue on fewer than about one in twenty of a class's images that were looked at",
    "a cue that is on nearly all images of a class at varying places: it looks like an object",
    "classes that share a cue, where pasting it does not make one of them",
)
MOST_TOLD = 20
# How far from one half the AUC of a property is that nearly tells a class from all others.
ODD = 0.45
OF_MAPS = tuple(field.name for field in fields(MapSummary))
TOLD = (Verdict.SHORTCUT, Verdict.COMPACT_CUE, Verdict.CONTEXT)


@dataclass(frozen=True)
class Report:
    """The findings, severest first, the worst of each class, and the classes' names.

    `odd` are each class's properties of files that nearly tell it from all others, and their AUC.
    """

    findings: list[Finding]
    of_class: Mapping[int, Verdict]
    names: ClassNames
    odd: Mapping[int, list[tuple[str, float]]]

    def only(self, targets: set[int]) -> "Report":
        """What is said of some of the classes."""
        return Report(
            [finding for finding in self.findings if finding.evidence.target in targets],
            {target: verdict for target, verdict in self.of_class.items() if target in targets},
            self.names,
            {target: odd for target, odd in self.odd.items() if target in targets},
        )

    def name(self, target: int) -> str:
        """A class's name."""
        return self.names.names[target]

    @property
    def counts(self) -> Counter[Verdict]:
        """How many classes have each verdict as their worst."""
        return Counter(self.of_class.values())


def write(audit: Audit, model: VitClassifier, targets: set[int]) -> Report:
    """Judge the classes whose evidence is there, and write the tables in place of those before."""
    stored = {target: audit.read(target) for target in sorted(targets)}
    rows_of = {target: plain.pop("rows") for target, plain in stored.items()}
    statistics = {target: plain.pop("statistics") for target, plain in stored.items()}
    found = findings([ClassEvidence.of(plain) for plain in stored.values()])
    odd = {
        target: [(name, auc) for name, auc in of["properties"].items() if abs(auc - 0.5) >= ODD]
        for target, of in statistics.items()
        if of is not None
    }
    report, grid = Report(found, worst(found), model.class_names, odd), model.grid
    plain = [_row(report, finding) for finding in found]
    metadata = {"audit": audit.run.id}
    table = pa.Table.from_pylist(plain, schema=audit_schema.findings())
    audit.findings.replace(schema.encode_parquet(table, metadata))
    audit.findings_json.replace(
        encode(
            {
                "audit": audit.run.id,
                "classes": {str(verdict): count for verdict, count in report.counts.items()},
                "findings": plain,
                "odd_properties": {report.name(t): dict(of) for t, of in odd.items() if of},
                "cannot_see": BLIND_SPOTS,
            }
        )
    )
    held = _carriers(found, rows_of, grid[0] * grid[1])
    carriers = pa.Table.from_pylist(held, schema=audit_schema.carriers(grid))
    audit.carriers.replace(schema.encode_parquet(carriers, metadata))
    described = pa.Table.from_pylist(
        [
            _statistics(model.class_names, target, of)
            for target, of in statistics.items()
            if of is not None
        ],
        schema=audit_schema.statistics(OF_MAPS, PROPERTIES),
    )
    audit.statistics.replace(schema.encode_parquet(described, metadata))
    return report


def _statistics(names: ClassNames, target: int, plain: Mapping[str, Any]) -> dict[str, Any]:
    """A row of statistics.parquet, from what dataclasses.asdict made of ClassStatistics."""
    return {
        "target": target,
        "target_name": names.names[target],
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
    row |= {name: getattr(evidence, name) for name in ("images", "explained", "hits", "passes")}
    cue = finding.of_cue
    return row if cue is None else row | _of_cue(cue)


def _of_cue(cue: CueEvidence) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(cue, name) for name in ("kind", "origin", "is_fixed")}
    row |= {
        "area": cue.area,
        "carriers": len(cue.carriers),
        "carrier_share": cue.carrier_share.value,
        "carrier_share_low": cue.carrier_share.low,
        "carrier_share_high": cue.carrier_share.high,
        "accuracy_of_carriers": cue.accuracy_of_carriers.value,
        "accuracy_of_others": cue.accuracy_of_others.value,
    }
    if cue.paste is not None:
        row |= {f"flips_{name.replace(' ', '_')}": v for name, v in cue.paste.controls.items()}
        row |= {"flips": cue.paste.flips, "p_value": cue.paste.p_value}
        lift = cue.paste.lift
        row |= {"lift": lift.value, "lift_low": lift.low, "lift_high": lift.high}
    if cue.removal is not None:
        drop = cue.removal.drop
        row |= {"kept_without": cue.removal.without, "kept_elsewhere": cue.removal.elsewhere}
        row |= {"drop": drop.value, "drop_low": drop.low, "drop_high": drop.high}
    return row


def _carriers(
    found: Sequence[Finding], rows_of: Mapping[int, Sequence[int]], cells: int
) -> list[dict[str, Any]]:
    return [
        {
            "target": finding.evidence.target,
            "cue": finding.cue,
            "verdict": str(finding.verdict),
            "row": rows_of[finding.evidence.target][carrier.image],
            "likeness": carrier.likeness,
            "cells": [cell in carrier.cells for cell in range(cells)],
        }
        for finding in found
        if (cue := finding.of_cue) is not None
        for carrier in cue.carriers
    ]


def tell(
    console: Console,
    audit: Audit,
    report: Report,
    config: AuditConfig,
    attempt: Attempt,
    untested: set[int],
) -> Exit:
    """Print the findings, say what was not tested, and give the exit code that follows."""
    _tell_findings(console, report)
    counts = ", ".join(f"{report.counts[v]} {v}" for v in Verdict if report.counts[v])
    console.print(f"{len(report.of_class)} classes: {counts or 'none'}", markup=False)
    _tell_odd(console, report)
    console.print(f"findings, evidence and carriers: {audit.run.root.shown}", markup=False)
    if attempt.problem is not None:
        console.print(attempt.problem, markup=False)
    for failure in attempt.failures:
        console.print(f"a class left undone: {failure.error}", markup=False)
    code = _exit_code(report, config, attempt, untested)
    audit.run.write_summary(
        {
            "state": "incomplete" if untested else "complete",
            "classes": {str(verdict): count for verdict, count in report.counts.items()},
            "classes_missing": len(untested),
            "seconds": attempt.seconds,
            "ended": now(),
        }
    )
    if untested:
        console.print(
            f"incomplete: {len(untested)} classes are not yet examined; the same command does the "
            "rest",
            markup=False,
        )
    return code


def _exit_code(report: Report, config: AuditConfig, attempt: Attempt, untested: set[int]) -> Exit:
    """A shortcut outweighs all that is missing, which is only tolerated where it is asked for."""
    if attempt.stopped is not None:
        return attempt.stopped
    if config.fail_on is not None and report.counts[Verdict.SHORTCUT]:
        return Exit.FINDINGS
    if config.fail_on is None:
        return Exit.INCOMPLETE if untested else Exit.COMPLETE
    unknown = bool(untested) or report.counts[Verdict.UNTESTABLE] > 0
    return Exit.INCOMPLETE if unknown and not config.allow_untested else Exit.COMPLETE


def _tell_odd(console: Console, report: Report) -> None:
    """Properties of files that nearly tell a class; nothing was pasted or removed for them."""
    odd = {target: of for target, of in report.odd.items() if of}
    for target, of in list(odd.items())[:MOST_TOLD]:
        told = ", ".join(f"{name} ({auc:.2f})" for name, auc in of)
        console.print(
            f"{report.name(target)}: files differ from all others' in {told}; untested",
            markup=False,
        )


def _tell_findings(console: Console, report: Report) -> None:
    of_cues = [
        finding
        for finding in report.findings
        if finding.of_cue is not None and finding.verdict in TOLD
    ]
    if not of_cues:
        return
    table = Table("class", "verdict", "cue", "on", "flips", "lift", "right without")
    for finding in of_cues[:MOST_TOLD]:
        cue = finding.of_cue
        if cue is None or cue.paste is None:
            continue
        lift, accuracy = cue.paste.lift, finding.accuracy_without
        table.add_row(
            Text(report.name(finding.evidence.target)),
            str(finding.verdict),
            f"{cue.kind} {'at one place' if cue.is_fixed else 'anywhere'}",
            f"{cue.carrier_share.value:.0%}",
            f"{cue.paste.flips:.0%}",
            f"{lift.value:.2f} [{lift.low:.2f}, {lift.high:.2f}]",
            "" if accuracy is None else f"{accuracy:.0%}",
        )
    console.print(table)
    if len(of_cues) > MOST_TOLD:
        console.print(f"and {len(of_cues) - MOST_TOLD} more in findings.parquet")
