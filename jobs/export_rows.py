"""A run's rows on their way into an export: all parts once, checked, and counted as they pass."""

from collections.abc import Generator
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.export_plan import Exported
from jobs.progress import counted, row_progress
from storage.exports import ExportError
from storage.parts import Parts, changed_since

READERS = 16
ROWS_AHEAD = 131_072  # that the readers hold together, about


def read_rows(exported: Exported, console: Console) -> Generator[pa.Table, None, None]:
    """The rows of the run, a part at a time: all of an image's rows are in one table.

    Raises PartsDamaged, and ExportError after the last part where all of them are not those that
    summary.json was made of.
    """
    parts = Parts(exported.run)
    with (
        closing(parts.read(readers(exported.rows, exported.summary["parts"]))) as tables,
        row_progress(console, "read", exported.rows) as advance,
    ):
        yield from counted(tables, advance)
    refuse_change(exported.run.root.shown, parts.digest, str(exported.summary["parts_digest"]))


def refuse_change(root: str, now: str, then: str) -> None:
    """Raise ExportError where a run's parts have another digest than its summary.json says."""
    if now != then:
        raise ExportError(f"RUN: {changed_since(root, now, then)}")


def first_of_images(table: pa.Table) -> pa.Table:
    """One row an image: that of its first target, or the one that says why it has none."""
    return table.filter(pc.equal(pc.fill_null(table["target_rank"], 0), 0))


def readers(rows: int, parts: int) -> int:
    """How many parts are read at the same time."""
    rows_of_a_part = max(rows // parts, 1)
    return max(2, min(READERS, ROWS_AHEAD // rows_of_a_part))
