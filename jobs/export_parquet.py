"""`saliency export --to parquet`: the explanations elsewhere, sorted by class into few files."""

import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit
from jobs.export_plan import plan
from jobs.export_rows import readers, refuse_change
from jobs.progress import Advance, counted, row_progress
from jobs.signals import terminable
from storage.exports import Export, ExportedFile, ExportError, entries, layout
from storage.parts import Parts, PartsDamaged, in_order
from storage.runs import Run, part_name
from storage.sorting import SortedRows, sort_rows

WRITERS = 2  # each holds the rows of a file twice, and the file
GIGABYTE = 2**30


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


def export(config: ExportConfig, console: Console) -> Exit:
    """Write the sorted copy, or the rest of it; one that is complete is left alone.

    Raises ConfigurationError for a run that is not finished or has changed, and for a place that
    holds anything else; StorageUnavailable where a store fails or the spill's disk is full.
    """
    return carry_out(plan_export(config), console)


def carry_out(plan: Plan, console: Console) -> Exit:
    """Do what is planned; raises as `export`."""
    try:
        said = plan.copy.begin()
        if said is None:
            with terminable(), tempfile.TemporaryDirectory(prefix="saliency-export-") as folder:
                said = _copy(plan, Path(folder), console)
        else:
            console.print("this export is complete; nothing to do")
    except (ExportError, PartsDamaged) as error:
        raise ConfigurationError([str(error)]) from error
    _tell(plan, said, console)
    return Exit.COMPLETE


def plan_export(config: ExportConfig) -> Plan:
    """The run and the place for its copy; raises ConfigurationError with all that is wrong."""
    exported = plan(config)
    run, summary = exported.run, exported.summary
    digest, rows = summary["parts_digest"], layout(exported.grid)
    return Plan(run, summary, Export(exported.folder.root, run.id, digest, config.sort_by, rows))


def _copy(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Read all parts, sort their rows by way of `folder`, and write the files."""
    copy, parts = plan.copy, Parts(plan.run)
    _check_room(plan, folder)
    several = readers(plan.rows, plan.summary["parts"])
    with (
        closing(parts.read(several)) as tables,
        row_progress(console, "read", plan.rows) as advance,
    ):
        rows = sort_rows(counted(tables, advance), copy.key, folder, copy.layout.file)
    refuse_change(plan.run.root.shown, parts.digest, copy.parts_digest)
    with row_progress(console, "written", rows.rows) as advance:
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


def _check_room(plan: Plan, folder: Path) -> None:
    """Refuse what is sure to fail: the maps alone need more room than there is."""
    rows, columns = plan.run.description["grid"]
    need, free = 2 * rows * columns * plan.maps, shutil.disk_usage(folder).free
    if need > free:
        raise ExportError(
            f"sorting needs more than {need / GIGABYTE:.1f} GiB under {folder.parent}, where "
            f"{free / GIGABYTE:.1f} GiB are free: set TMPDIR to a folder with more room"
        )


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
