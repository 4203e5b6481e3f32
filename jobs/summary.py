"""summary.json, and what a run tells on the terminal: its plan, its end, and what to do next."""

import platform
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.aggregate import Aggregate
from jobs.config import Exit, ExplainConfig
from jobs.plan import Shard, remaining
from jobs.pool import Resources, ShardFailure
from jobs.prepare import Prepared
from jobs.worker import ShardReport
from storage.locations import creates_conditionally
from storage.runs import Run

FINISHED = ("complete", "failed")
PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "pillow", "numpy")


@dataclass
class Attempt:
    """What one start of the driver did: totals over its shards, and what it had to leave."""

    seconds: dict[str, float] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[ShardFailure] = field(default_factory=list)
    stopped: Exit | None = None
    problem: str | None = None

    def add(self, report: ShardReport) -> None:
        """Count a shard's images and time."""
        self.statuses.update(report.statuses)
        for stage, seconds in report.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @property
    def failed_images(self) -> int:
        return self.statuses.total() - self.statuses["ok"]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def start(run: Run, prepared: Prepared) -> None:
    """Mark the run as running; the images' counts follow at its end."""
    run.write_summary(
        {
            "state": "running",
            "run": run.id,
            "rows": prepared.rows,
            "labels_unknown": prepared.labels_unknown,
            "started": now(),
        }
    )


def attempt_info(config: ExplainConfig, resources: Resources) -> dict[str, Any]:
    """attempts/<n>.json: who computes, with which versions."""
    return {
        "started": now(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "execution": asdict(config.execution),
        "resources": asdict(resources),
    }


def exit_code(summary: Mapping[str, Any], max_failed: float) -> Exit:
    """The code of a run whose every row is written."""
    failed = summary["rows"] - summary["statuses"].get("ok", 0)
    return Exit.TOO_MANY_FAILED if failed > max_failed * summary["rows"] else Exit.COMPLETE


def complete(
    console: Console, run: Run, config: ExplainConfig, result: Aggregate, attempt: Attempt
) -> Exit:
    """Close a run whose every row is written: summary.json, and a table of what lies where."""
    seconds = {stage: round(value, 3) for stage, value in sorted(attempt.seconds.items())}
    images = attempt.statuses.total()
    summary = (run.read_summary() or {"labels_unknown": 0}) | {
        "run": run.id,
        "rows": result.images,
        "statuses": dict(sorted(result.statuses.items())),
        "parts": result.parts,
        "parts_digest": result.digest,
        "classes_explained": len(result.names),
        "seconds": seconds,
        "images_per_second": round(images / seconds["run"], 2) if images else None,
        "ended": now(),
    }
    code = exit_code(summary, config.execution.max_failed)
    summary["state"] = "complete" if code is Exit.COMPLETE else "failed"
    run.write_summary(summary)
    _tell_result(console, run, summary)
    if code is Exit.TOO_MANY_FAILED:
        _tell_too_many_failed(console, result.images - result.statuses["ok"], result.images)
    return code


def incomplete(
    console: Console, run: Run, config: ExplainConfig, planned: list[Shard], attempt: Attempt
) -> Exit:
    """Say what is missing and why; the same command does the rest."""
    missing = remaining(planned, run.committed())
    state = "failed" if attempt.stopped is Exit.TOO_MANY_FAILED else "incomplete"
    failures = [{"shard": f.shard.index, "error": f.error} for f in attempt.failures]
    summary = run.read_summary() or {}
    run.write_summary(
        summary | {"state": state, "shards_missing": len(missing), "errors": failures}
    )
    if attempt.problem is not None:
        console.print(attempt.problem, markup=False)
    for failure in attempt.failures:
        console.print(f"shard {failure.shard.index} is left undone: {failure.error}", markup=False)
    if attempt.stopped is Exit.TOO_MANY_FAILED:
        _tell_too_many_failed(console, attempt.failed_images, attempt.statuses.total())
    console.print(
        f"incomplete: {len(planned) - len(missing)} of {len(planned)} shards are written to "
        f"{run.root.shown}; the same command does the rest",
        markup=False,
    )
    return attempt.stopped or Exit.INCOMPLETE


def _tell_too_many_failed(console: Console, failed: int, images: int) -> None:
    console.print(
        f"{failed} of {images} images failed, more than --max-failed allows; their rows say why "
        "(columns status and error); give a larger --max-failed if that is as it should be",
        markup=False,
    )


def tell_plan(console: Console, prepared: Prepared, planned: list[Shard]) -> None:
    """One line of what will be explained, and one where labels are no classes of the model."""
    grid, method = prepared.model.grid, prepared.method
    console.print(
        f"{prepared.rows} images in {len(planned)} shards; {prepared.model.name}, "
        f"{prepared.model.classes} classes, {grid[0]} x {grid[1]} patches; block {method.block}, "
        f"{method.residual} residual, {method.mask} masks, target {prepared.target.kind}",
        markup=False,
    )
    if prepared.labels_unknown:
        console.print(
            f"{prepared.labels_unknown} of {prepared.rows} labels are no class of the model: they "
            "stay in label_name, with a null label",
        )


def warn_unless_conditional(console: Console, run: Run) -> None:
    """Say where the store does not keep two writers of one part apart."""
    if not creates_conditionally(run.root.child("run.json")):
        console.print(
            f"warning: the store of {run.root} does not refuse to create an object twice; run "
            "only one driver at a time on this run",
            markup=False,
        )


def tell_finished(console: Console, run: Run, summary: Mapping[str, Any]) -> None:
    """A finished run was asked for again."""
    console.print("this run is finished; nothing to do")
    _tell_result(console, run, summary)


def _tell_result(console: Console, run: Run, summary: Mapping[str, Any]) -> None:
    table = Table(title=f"run {run.id}", title_justify="left", show_header=False)
    statuses = ", ".join(f"{count} {status}" for status, count in summary["statuses"].items())
    table.add_row("images", f"{summary['rows']}: {statuses}")
    if summary["images_per_second"]:
        seconds = summary["seconds"]
        rate = f"{summary['images_per_second']:g} images/s, start-up included"
        table.add_row(
            "speed", f"{rate}; {seconds['run']:.0f} s, {seconds['start']:.0f} of them to start"
        )
    root = run.root.shown
    table.add_row("explanations", f"{root}/explanations/ ({summary['parts']} Parquet parts)")
    table.add_row("class heatmaps", f"{root}/class_heatmaps.parquet")
    table.add_row("", f"{root}/class_heatmaps/*.png ({summary['classes_explained']} classes)")
    table.add_row("summary", f"{root}/summary.json")
    console.print(table)
