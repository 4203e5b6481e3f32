"""`saliency report`: one HTML file of a finished run, its audit, its classes and their images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from jobs.commands import ReportConfig
from jobs.compare import compare_runs
from jobs.config import ConfigurationError, Exit
from jobs.finished import Finished, open_finished
from jobs.options import check_writable, read_options
from jobs.report_classes import Classes, ClassView, mean_maps
from jobs.report_facts import facts
from jobs.report_findings import EXAMPLES, MOST_PICTURED, Findings
from jobs.report_page import (
    EXEMPLAR_BYTES,
    EXEMPLARS_OF_MANY,
    FEW_CLASSES,
    FINDINGS_BYTES,
    MOST_BYTES,
    SIDE,
    SIDE_OF_MANY,
    Changes,
    Page,
    Pictures,
    Wanted,
    load_photos,
    render,
)
from jobs.report_pictures import Photo, sheet_url
from jobs.report_scan import EXEMPLARS, Scan, scan
from storage.audits import chosen_audit
from storage.locations import CredentialsRefused, Location, WriteRefused
from storage.parts import changed_since
from storage.runs import NotARun, open_run
from storage.trust import named

Key = tuple[int, int]


@dataclass(frozen=True)
class Budget:
    """Bytes of a picture, and the longest side of an exemplar; images are resized to fit."""

    finding: int
    exemplar: int
    side: int
    kept: int = field(default=EXEMPLARS)

    @classmethod
    def of(cls, classes: int, cards: int) -> "Budget":
        """So much that a page of that many classes and pictured findings stays under 30 MB."""
        many = classes > FEW_CLASSES
        kept = EXEMPLARS_OF_MANY if many else EXEMPLARS
        return cls(
            finding=min(MOST_BYTES, FINDINGS_BYTES // max(1, cards * (2 * EXAMPLES + 1))),
            exemplar=min(MOST_BYTES, EXEMPLAR_BYTES // max(1, classes * 2 * kept)),
            side=SIDE_OF_MANY if many else SIDE,
            kept=kept,
        )


def report(config: ReportConfig, console: Console) -> Exit:
    """Read the run once, draw its pictures and write the page, in place of one before.

    Raises ConfigurationError where RUN is not finished or has no such audit; StorageUnavailable.
    """
    finished = open_finished(config.run, config.input_storage, config.output_storage)
    place, findings = _checked(config, finished)
    changes = None if config.against is None else _changes(config, finished)
    page = replace(compose(finished, findings, config.pictures), changes=changes)
    try:
        place.replace(render(page).encode())
    except WriteRefused as error:
        raise ConfigurationError([f"--out: {error}"]) from error
    told = "without an audit" if findings is None else f"with audit {findings.audit.run.root.name}"
    console.print(f"{place.shown}: {len(page.views)} classes, {told}", markup=False)
    return Exit.COMPLETE


def compose(finished: Finished, findings: Findings | None, pictures: bool) -> Page:
    """Everything that the page says, from one pass over the run's parts."""
    heatmaps = finished.run.read_class_heatmaps()
    _check_digest(finished, heatmaps.schema.metadata or {})
    asked: set[Key] = set() if findings is None else findings.wanted
    scanned = scan(finished.run, finished.grid, mean_maps(heatmaps), asked)
    _check_parts(finished, scanned.digest)
    classes = Classes(heatmaps, finished.grid, scanned)
    views = list(classes.views())
    cards = [] if findings is None else [findings.card(r, scanned.wanted) for r in findings.cards]
    budget = Budget.of(len(views), min(len(cards), MOST_PICTURED))
    wanted = dict(_exemplars(views, budget))
    for card in cards[:MOST_PICTURED]:
        for image in (*card.carriers, *card.others):
            wanted[image.row, image.target] = Wanted(image, None, budget.finding)
    photos = _photos(finished, wanted) if pictures else {}
    return Page(
        facts=facts(finished, findings),
        statuses=finished.summary["statuses"],
        classes=classes,
        findings=findings,
        cards=cards,
        sheets=_sheets(findings, budget) if findings is not None and pictures else {},
        pictures=Pictures(photos, classes.names),
        many=len(views) > FEW_CLASSES,
    )


def _checked(config: ReportConfig, finished: Finished) -> tuple[Location, Findings | None]:
    """Where the page goes, and what it tells. Raises ConfigurationError with all that is wrong."""
    problems: list[str] = []
    place, findings = finished.run.root.child("report.html"), None
    try:
        if config.out is not None:
            place = _place(config.out, finished, read_options(config.output_storage))
        check_writable(place.parent)
    except (WriteRefused, CredentialsRefused, OSError, ValueError, ImportError) as error:
        problems.append(f"--out: {error}")
    try:
        digest = finished.summary["parts_digest"]
        audit = chosen_audit(finished.run, digest, config.audit)
        findings = None if audit is None else Findings.read(audit)
    except (NotARun, FileNotFoundError, ValueError) as error:
        problems.append(f"--audit: {error}")
    if problems:
        raise ConfigurationError(problems)
    return place, findings


def _place(out: str, finished: Finished, options: Mapping[str, Any]) -> Location:
    """The place that --out names. Raises ValueError where a file of the run may be."""
    place, run = named(out, options), finished.run.root
    if place.url.startswith(f"{run.url}/") and not place.name.endswith(".html"):
        raise ValueError(
            f"{place} may be a file of the run, which a page would take the place of: name one "
            "that ends in .html, or a place outside of the run"
        )
    return place


def _changes(config: ReportConfig, finished: Finished) -> Changes:
    """What changed from the run before."""
    try:
        before = open_run(named(config.against or "", read_options(config.output_storage)))
        comparison = compare_runs(before, finished.run)
    except ConfigurationError as error:
        raise ConfigurationError([_as_asked(problem) for problem in error.problems]) from error
    except (NotARun, OSError, ValueError, ImportError) as error:
        raise ConfigurationError([f"--against: {error}"]) from error
    if comparison.a.grid != comparison.b.grid:
        return Changes(comparison, {}, {})
    then, now = (
        Classes(run.read_class_heatmaps(), finished.grid, Scan()).means_by_name
        for run in (before, finished.run)
    )
    return Changes(comparison, then, now)


def _as_asked(problem: str) -> str:
    """A problem of `saliency compare`, whose runs are options here."""
    return problem.replace("RUN_A", "--against").replace("RUN_B", "RUN")


def _check_digest(finished: Finished, metadata: Mapping[bytes, bytes]) -> None:
    of, now = metadata.get(b"parts_digest", b"").decode(), finished.summary["parts_digest"]
    if of != now:
        raise ConfigurationError(
            [
                f"RUN: class_heatmaps.parquet of {finished.run.root} is of parts with the digest "
                f"{of or 'none'}, summary.json of {now}: run the same `saliency explain` again"
            ]
        )


def _check_parts(finished: Finished, now: str) -> None:
    then = finished.summary["parts_digest"]
    if now != then:
        raise ConfigurationError([f"RUN: {changed_since(finished.run.root, now, then)}"])


def _exemplars(views: Iterable[ClassView], budget: Budget) -> Iterator[tuple[Key, Wanted]]:
    for view in views:
        for images in view.scanned.exemplars(budget.kept):
            for image in images:
                yield (image.row, image.target), Wanted(image, budget.side, budget.exemplar)


def _photos(finished: Finished, wanted: Mapping[Key, Wanted]) -> dict[Key, Photo | str]:
    rows = sorted({row for row, _ in wanted})
    files = (
        (row, found.data if found.data is not None else f"{found.status}: {found.error}")
        for row, found in finished.files(rows)
    )
    return load_photos(files, wanted, finished.preprocessing)


def _sheets(findings: Findings, budget: Budget) -> dict[Key, Any]:
    """By class and cue the picture of the interventions, where there is one."""
    found = {}
    for row in findings.cards[:MOST_PICTURED]:
        key = (row["target"], row["cue"])
        try:
            found[key] = sheet_url(findings.audit.picture(*key).read(), budget.finding)
        except FileNotFoundError:
            continue
    return found
