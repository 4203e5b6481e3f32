"""`saliency export`: a finished run's explanations elsewhere, sorted by class into few files."""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jobs.config import ConfigurationError, Exit
from jobs.options import check_writable, read_options
from jobs.progress import LINE_SECONDS
from storage.exports import Export, ExportedFile, ExportError, entries, layout
from storage.locations import CredentialsRefused, WriteRefused
from storage.parts import Parts, PartsDamaged, in_order
from storage.runs import FINISHED, NotARun, Run, open_run, part_name
from storage.sorting import SortedRows, sort_rows
from storage.trust import named

READERS = 16
ROWS_AHEAD = 131_072  # that the readers hold together, about
WRITERS = 2  # each holds the rows of a file twice, and the file
GIGABYTE = 2**30
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Request:
    """What is exported to where; the storages are JSON files of fsspec options."""

    run: str
    out: str
    sort_by: str = "target"
    input_storage: str | None = None
    output_storage: str | None = None


@dataclass(frozen=True)
class Plan:
    """A finished run, what its summary.json says, and the copy of it that is to be made."""

    run: Run
    summary: Mapping[str, Any]
    copy: Export

    @property
    def maps(self) -> int:
        """Rows with a map."""
        return self._explained * int(self.run.description["targets_per_image"])

    @property
    def rows(self) -> int:
        return self.maps + int(self.summary["rows"]) - self._explained

    @property
    def _explained(self) -> int:
        return int(self.summary["statuses"].get("ok", 0))


def export(request: Request, console: Console) -> Exit:
    """Write the sorted copy, or the rest of it; one that is complete is left alone.

    Raises ConfigurationError for a run that is not finished or has changed, and for a place that
    holds anything else; StorageUnavailable where a store fails or the spill's disk is full.
    """
    return carry_out(plan_export(request), console)


def carry_out(plan: Plan, console: Console) -> Exit:
    """Do what is planned; raises as `export`."""
    try:
        said = plan.copy.begin()
        if said is None:
            with _terminable(), tempfile.TemporaryDirectory(prefix="saliency-export-") as folder:
                said = _copy(plan, Path(folder), console)
        else:
            console.print("this export is complete; nothing to do")
    except (ExportError, PartsDamaged) as error:
        raise ConfigurationError([str(error)]) from error
    _tell(plan, said, console)
    return Exit.COMPLETE


def plan_export(request: Request) -> Plan:
    """The run and the place for its copy; raises ConfigurationError with all that is wrong."""
    problems: list[str] = []
    run, summary, out = None, None, None
    try:
        run = open_run(named(request.run, read_options(request.input_storage)))
        summary = _finished(run)
    except (NotARun, OSError, ValueError, ImportError) as error:
        problems.append(f"RUN: {error}")
    try:
        out = named(request.out, read_options(request.output_storage))
        if run is not None and f"{out.url}/".startswith(f"{run.root.url}/"):
            raise ValueError(f"{out} lies in the run: name a place outside of it")
        entries(out)
        check_writable(out)
    except (WriteRefused, CredentialsRefused, OSError, ValueError, ImportError) as error:
        problems.append(f"--out: {error}")
    if problems or run is None or summary is None or out is None:
        raise ConfigurationError(problems)
    rows, columns = run.description["grid"]
    copy = Export(out, run.id, summary["parts_digest"], request.sort_by, layout((rows, columns)))
    return Plan(run, summary, copy)


def _finished(run: Run) -> Mapping[str, Any]:
    summary = run.read_summary() or {"state": "not started"}
    if summary["state"] not in FINISHED or "parts_digest" not in summary:
        raise ValueError(
            f"{run.root} is not finished (state: {summary['state']}); the `saliency explain` that "
            "made it does the rest, export it then"
        )
    return summary


def _copy(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Read all parts, sort their rows by way of `folder`, and write the files."""
    copy, parts = plan.copy, Parts(plan.run)
    _check_room(plan, folder)
    rows_of_a_part = max(plan.rows // plan.summary["parts"], 1)
    readers = max(2, min(READERS, ROWS_AHEAD // rows_of_a_part))
    with closing(parts.read(readers)) as tables, _progress(console, "read", plan.rows) as advance:
        rows = sort_rows(_counted(tables, advance), copy.key, folder, copy.layout.file)
    if parts.digest != copy.parts_digest:
        raise ExportError(
            f"RUN: the parts of {plan.run.root} have the digest {parts.digest}, its summary.json "
            f"has {copy.parts_digest}: parts came, went or changed since the run was finished"
        )
    with _progress(console, "written", rows.rows) as advance:
        return copy.finish(list(_write(copy, rows, parts.metadata, advance)))


def _write(
    copy: Export, rows: SortedRows, metadata: Mapping[bytes, bytes], advance: Advance
) -> Generator[ExportedFile, None, None]:
    """The files, each from the rows at its positions."""

    def write(start: int) -> ExportedFile:
        stop = min(start + copy.layout.file, rows.rows)
        return copy.write(start // copy.layout.file, rows.read(range(start, stop)), metadata)

    starts = range(0, rows.rows, copy.layout.file)
    with closing(in_order(write, starts, WRITERS)) as written:
        for file in written:
            advance(file.rows)
            yield file


def _counted(tables: Iterator[pa.Table], advance: Advance) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        advance(table.num_rows)


def _check_room(plan: Plan, folder: Path) -> None:
    """Refuse what is sure to fail: the maps alone need more room than there is."""
    rows, columns = plan.run.description["grid"]
    need, free = 2 * rows * columns * plan.maps, shutil.disk_usage(folder).free
    if need > free:
        raise ExportError(
            f"sorting needs more than {need / GIGABYTE:.1f} GiB under {folder.parent}, where "
            f"{free / GIGABYTE:.1f} GiB are free: set TMPDIR to a folder with more room"
        )


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that the spill folder is removed."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(Exit.TERMINATED)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Advance]:
    """Counts rows: a live bar on a terminal, a plain line every ten seconds in a log."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=total)
    done, last_line = 0, time.monotonic()

    def advance(rows: int) -> None:
        nonlocal done, last_line
        done += rows
        bar.advance(task, rows)
        if not console.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
            last_line = time.monotonic()
            console.print(f"{what}: {done} of {total} rows")

    with bar:
        yield advance


def _tell(plan: Plan, said: Mapping[str, Any], console: Console) -> None:
    parts = entries(plan.run.root.child("explanations"))
    source = sum(parts[Path(part_name(i)).name] for i in plan.run.committed())
    exported = entries(plan.copy.files)
    size = sum(exported[file["name"]] for file in said["files"])
    rows, files = said["rows"], len(said["files"])
    table = Table(title=f"export of run {plan.run.id}", title_justify="left", show_header=False)
    lines = {
        "rows": f"{rows}, sorted by {said['sorted_by']}",
        "files": f"{plan.copy.files.shown}/ ({files} Parquet files, {size / 2**20:.1f} MiB)",
        "bytes per row": f"{size / rows:.0f}; in the run's {len(parts)} parts {source / rows:.0f}",
        "complete by": f"{plan.copy.root.shown}/export.json",
    }
    for name, value in lines.items():
        table.add_row(name, Text(value))
    console.print(table)
