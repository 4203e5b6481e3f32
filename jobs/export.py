"""`saliency export`: a finished run in the form that another tool opens; one module a format."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit
from jobs.export_plan import Exported, Written, plan
from storage.exports import ExportError
from storage.parts import PartsDamaged

Write = Callable[[Exported, Console], Written]


def export(config: ExportConfig, console: Console) -> Exit:
    """Write the export, or the rest of it; one that is complete is left alone.

    Raises ConfigurationError for a run that is not finished or has changed, for an audit that is
    not there or of other parts, and for a place that holds anything else; StorageUnavailable where
    a store fails or the disk is full.
    """
    if config.to == "parquet":
        from jobs import export_parquet

        return export_parquet.export(config, console)
    exported = plan(config)
    try:
        said = exported.folder.begin()
        if said is None:
            # One module a format: some load torch or scikit-learn.
            write: Write = import_module(f"jobs.export_{config.to}").write
            written = write(exported, console)
            said = exported.folder.finish(written.files, written.counts)
        else:
            console.print("this export is complete; nothing to do")
    except (ExportError, PartsDamaged) as error:
        raise ConfigurationError([str(error)]) from error
    _tell(exported, said, console)
    return Exit.COMPLETE


def _tell(exported: Exported, said: Mapping[str, Any], console: Console) -> None:
    folder, files = exported.folder, said["files"]
    size = sum(file["bytes"] for file in files)
    title = f"export of run {exported.run.id} to {exported.config.to}"
    table = Table(title=title, title_justify="left", show_header=False)
    lines = {name: f"{count:,}" for name, count in said.items() if isinstance(count, int)}
    lines["files"] = f"{folder.root.shown}/ ({len(files)} files, {size / 2**20:.1f} MiB)"
    if exported.found is not None:
        lines["audit"] = exported.found.told
    lines["complete by"] = f"{folder.root.shown}/export.json"
    for name, value in lines.items():
        table.add_row(name, Text(value))
    console.print(table)
