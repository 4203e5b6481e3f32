"""`saliency compare`: what changed from one run to another; needs neither torch nor Ray."""

import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.commands import CompareConfig
from jobs.compare_classes import ClassKeys, compare_classes, draw
from jobs.compare_findings import FindingsCompared, compare_findings
from jobs.compare_told import failed_by, remarks, tell, tell_json, written
from jobs.comparison import Comparison, Setting, Side, StatusChange, accuracy_of
from jobs.config import ConfigurationError, Exit
from jobs.map_sample import MapSample
from jobs.options import check_writable, read_options
from jobs.progress import Advance, counted, row_progress
from jobs.signals import terminable
from storage import comparisons
from storage.audits import Audit, chosen_audit
from storage.locations import CredentialsRefused, Location, WriteRefused
from storage.pairs import Join, Pairs
from storage.parts import Parts, PartsDamaged, changed_since
from storage.runs import NotARun, Run, finished_summary, open_run, unequal
from storage.trust import named

READERS = 8  # of each run
ROWS_AHEAD = 65_536  # that the readers of a run hold together, about


@dataclass(frozen=True)
class Subject:
    """A finished run, what its summary.json says, and its last audit, if any."""

    run: Run
    summary: dict[str, Any]
    audit: Audit | None
    side: Side


def compare(config: CompareConfig, console: Console) -> Exit:
    """Compare two finished runs and tell what changed.

    Raises ConfigurationError with all that is wrong with the config, and for runs that share no
    image; StorageUnavailable where a store fails or the temporary folder is full.
    """
    problems: list[str] = []
    storage_b = config.input_storage_b or config.input_storage
    a = _subject("RUN_A", config.run_a, config.input_storage, problems)
    b = _subject("RUN_B", config.run_b, storage_b, problems)
    out = None if config.out is None else _place(config, problems)
    if config.fail_on is not None:
        problems += [
            f"--fail-on: {subject.run.root} has no finished audit of its rows; run `saliency audit "
            f"{subject.run.root}` first"
            for subject in (a, b)
            if subject is not None and subject.audit is None
        ]
    if problems or a is None or b is None:
        raise ConfigurationError(problems)
    quiet = Console(quiet=True) if config.json else console
    rows = a.side.rows + b.side.rows
    with (
        terminable(),
        row_progress(quiet, "read", rows) as advance,
        _compared(a, b, advance) as (comparison, pairs),
    ):
        if out is not None:
            joined = pairs.read(comparisons.rows().names, comparisons.ROWS_OF_A_FILE)
            comparisons.write(out, joined, *written(comparison))
    if config.json:
        tell_json(console, comparison)
    else:
        tell(console, comparison, out)
    return failed_by(comparison) if config.fail_on is not None else Exit.COMPLETE


def compare_runs(a: Run, b: Run) -> Comparison:
    """What changed from one finished run to another.

    Raises ConfigurationError where a run is not finished or has changed since, and where the runs
    share no image.
    """
    problems: list[str] = []
    subjects = [_opened(name, run, problems) for name, run in (("RUN_A", a), ("RUN_B", b))]
    one, other = subjects
    if problems or one is None or other is None:
        raise ConfigurationError(problems)
    with _compared(one, other, lambda rows: None) as (comparison, _):
        return comparison


def _subject(name: str, url: str, storage: str | None, problems: list[str]) -> Subject | None:
    try:
        return _opened(name, open_run(named(url, read_options(storage))), problems)
    except (NotARun, OSError, ValueError, ImportError) as error:
        problems.append(f"{name}: {error}")
        return None


def _opened(name: str, run: Run, problems: list[str]) -> Subject | None:
    """The run with its audit; a problem where it is not finished."""
    try:
        summary = finished_summary(run)
        audit = _complete(chosen_audit(run, summary["parts_digest"]))
        return Subject(run, summary, audit, _side(run, summary, audit))
    except (NotARun, OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{name}: {error}")
        return None


def _complete(audit: Audit | None) -> Audit | None:
    """An audit that has looked at every class: what another did not find is not gone."""
    state = None if audit is None else (audit.run.read_summary() or {}).get("state")
    return audit if state == "complete" else None


def _side(run: Run, summary: dict[str, Any], audit: Audit | None) -> Side:
    identity = run.description["fingerprint_of"]
    rows, columns = run.description["grid"]
    return Side(
        run=run.id,
        root=run.root.shown,
        model=identity["model"]["name"],
        weights=identity["model"]["weights"],
        target=identity["method"]["target"],
        grid=(rows, columns),
        rows=summary["rows"],
        statuses=summary["statuses"],
        audit=None if audit is None else audit.run.id,
    )


def _place(config: CompareConfig, problems: list[str]) -> Location | None:
    try:
        out = named(config.out or "", read_options(config.output_storage))
        comparisons.check_empty(out)
        check_writable(out)
        return out
    except (WriteRefused, CredentialsRefused, OSError, ValueError, ImportError) as error:
        problems.append(f"--out: {error}")
        return None


@contextmanager
def _compared(
    a: Subject, b: Subject, advance: Advance
) -> Generator[tuple[Comparison, Pairs], None, None]:
    """The comparison, and the joined rows for as long as it is entered."""
    heatmaps = a.run.read_class_heatmaps(), b.run.read_class_heatmaps()
    keys = ClassKeys.of(a.run, b.run, heatmaps)
    join = Join(
        is_of_one_manifest=_setting(a, "manifest") == _setting(b, "manifest"),
        is_of_one_class_list=keys.is_one_list,
        has_maps=a.side.grid == b.side.grid,
        cells=a.side.grid[0] * a.side.grid[1],
        ambiguous=keys.ambiguous,
    )
    with (
        tempfile.TemporaryDirectory(prefix="saliency-compare-") as folder,
        closing(Pairs(Path(folder), join)) as pairs,
    ):
        sample = MapSample(a.summary["classes_explained"], join.cells)
        _read(a, b, pairs, sample, advance)
        totals = pairs.totals()
        if not totals.both:
            raise ConfigurationError(
                [
                    f"RUN_B: {b.run.root} and {a.run.root} have no image_id in common, by which "
                    "rows are joined: explain both from lists with the same ids (--id-column)"
                ]
            )
        classes = compare_classes(pairs, sample, heatmaps, (a.side.grid, b.side.grid), keys)
        differ = unequal(*(s.run.description["fingerprint_of"] for s in (a, b)))
        settings = tuple(Setting(*setting) for setting in differ)
        found = FindingsCompared((), ())
        if a.audit is not None and b.audit is not None:
            found = compare_findings((a.audit, b.audit), pairs, keys.both)
        comparison = Comparison(
            a=a.side,
            b=b.side,
            settings=settings,
            remarks=tuple(remarks((a.side, b.side), settings, keys, totals.labels_changed)),
            images=totals,
            statuses=tuple(StatusChange(*change) for change in pairs.statuses()),
            accuracy=accuracy_of(pairs.outcomes()),
            classes=tuple(classes),
            findings=found.changes,
            untested=found.untested,
        )
        yield comparison, pairs


def _setting(subject: Subject, name: str) -> object:
    return subject.run.description["fingerprint_of"].get(name)


def _read(a: Subject, b: Subject, pairs: Pairs, sample: MapSample, advance: Advance) -> None:
    """Read both runs once, join their rows, and keep them and some maps of each class."""
    parts = Parts(a.run), Parts(b.run)
    streams = [
        part.read(max(2, min(READERS, ROWS_AHEAD * subject.summary["parts"] // subject.side.rows)))
        for part, subject in zip(parts, (a, b), strict=True)
    ]
    try:
        with closing(streams[0]), closing(streams[1]):
            passing = [counted(stream, advance) for stream in streams]
            for rows in pairs.joined(*passing):
                pairs.keep(draw(rows, sample, pairs.join))
    except PartsDamaged as error:
        raise ConfigurationError([str(error)]) from error
    changed = [
        f"{name}: {changed_since(subject.run.root, part.digest, subject.summary['parts_digest'])}"
        for name, subject, part in zip(("RUN_A", "RUN_B"), (a, b), parts, strict=True)
        if part.digest != subject.summary["parts_digest"]
    ]
    if changed:
        raise ConfigurationError(changed)
