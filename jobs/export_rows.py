"""A run's rows on their way into an export: all parts once, checked, and counted as they pass."""

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.config import Exit
from jobs.export_plan import Exported
from jobs.progress import LINE_SECONDS
from storage.exports import ExportError
from storage.parts import Parts

READERS = 16
ROWS_AHEAD = 131_072  # that the readers hold together, about
Advance = Callable[[int], None]


def read_rows(exported: Exported, console: Console) -> Generator[pa.Table, None, None]:
    """The rows of the run, a part at a time: all of an image's rows are in one table.

    Raises PartsDamaged, and ExportError after the last part where all of them are not those that
    summary.json was made of.
    """
    parts = Parts(exported.run)
    with (
        closing(parts.read(readers(exported.rows, exported.summary["parts"]))) as tables,
        progress(console, "read", exported.rows) as advance,
    ):
        yield from counted(tables, advance)
    refuse_change(exported.run.root.shown, parts.digest, str(exported.summary["parts_digest"]))


def refuse_change(root: str, now: str, then: str) -> None:
    """Raise ExportError where a run's parts have another digest than its summary.json says."""
    if now != then:
        raise ExportError(
            f"RUN: the parts of {root} have the digest {now}, its summary.json has {then}: parts "
            "came, went or changed since the run was finished"
        )


def first_of_images(table: pa.Table) -> pa.Table:
    """One row an image: that of its first target, or the one that says why it has none."""
    return table.filter(pc.equal(pc.fill_null(table["target_rank"], 0), 0))


def readers(rows: int, parts: int) -> int:
    """How many parts are read at the same time."""
    rows_of_a_part = max(rows // parts, 1)
    return max(2, min(READERS, ROWS_AHEAD // rows_of_a_part))


def counted(tables: Iterator[pa.Table], advance: Advance) -> Iterator[pa.Table]:
    """The same tables; each is counted once the next one is asked for."""
    for table in tables:
        yield table
        advance(table.num_rows)


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Advance]:
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


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that temporary folders are removed."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(Exit.TERMINATED)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
