"""What is told of an audit on the terminal, and the exit code that follows."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from explainer.audit.verdicts import ACCUSED, Verdict
from jobs.config import AuditConfig, Exit
from jobs.findings import Report
from jobs.summary import Attempt
from storage.audits import Audit

MOST_TOLD = 20


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
    if report.findings:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items())
        console.print(f"{len(report.of_class)} classes: {counts}", markup=False)
    _tell_odd(console, report)
    console.print(f"findings, evidence and carriers: {audit.run.root.shown}", markup=False)
    if attempt.problem is not None:
        console.print(attempt.problem, markup=False)
    for failure in attempt.failures:
        console.print(f"a class left undone: {failure.error}", markup=False)
    if untested:
        console.print(
            f"incomplete: {len(untested)} classes are not yet examined; the same command does the "
            "rest",
            markup=False,
        )
    return _exit_code(report, config, attempt, untested)


def _exit_code(report: Report, config: AuditConfig, attempt: Attempt, untested: set[int]) -> Exit:
    """A shortcut outweighs all that is missing, which is only tolerated where it is asked for."""
    if attempt.stopped is not None:
        return attempt.stopped
    verdicts = set(report.of_class.values())
    if config.fail_on is not None and Verdict.SHORTCUT in verdicts:
        return Exit.FINDINGS
    if config.fail_on is None:
        return Exit.INCOMPLETE if untested else Exit.COMPLETE
    unknown = bool(untested) or Verdict.UNTESTABLE in verdicts
    return Exit.INCOMPLETE if unknown and not config.allow_untested else Exit.COMPLETE


def _tell_odd(console: Console, report: Report) -> None:
    """Properties of files that nearly tell a class; nothing was pasted or removed for them."""
    for name, properties in list(report.odd.items())[:MOST_TOLD]:
        told = ", ".join(f"{which} ({auc:.2f})" for which, auc in properties.items())
        console.print(f"{name}: files differ from others' in {told}; untested", markup=False)


def _tell_findings(console: Console, report: Report) -> None:
    of_cues = [
        finding
        for finding in report.findings
        if finding.of_cue is not None and finding.verdict in ACCUSED
    ]
    if not of_cues:
        return
    table = Table("class", "verdict", "cue", "on", "right", "without it", "lift")
    for finding in of_cues[:MOST_TOLD]:
        cue = finding.of_cue
        if cue is None or cue.paste is None or cue.removal is None:
            continue
        lift, right = cue.paste.lift, cue.accuracy_of_carriers.value
        table.add_row(
            Text(report.name(finding.evidence.target)),
            str(finding.verdict),
            f"{cue.kind} {'at one place' if cue.is_fixed else 'anywhere'}",
            f"{cue.carrier_share.value:.0%}",
            f"{right:.0%}",
            f"{right * cue.removal.without:.0%}",
            f"{lift.value:.2f} [{lift.low:.2f}, {lift.high:.2f}]",
        )
    console.print(table)
    if len(of_cues) > MOST_TOLD:
        console.print(f"and {len(of_cues) - MOST_TOLD} more in findings.parquet")
