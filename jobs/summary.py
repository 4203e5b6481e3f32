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
from rich.text import Text

from jobs.aggregate import Aggregate
from jobs.config import Exit, ExplainConfig
from jobs.plan import Shard
from jobs.pool import Resources, ShardFailure
from jobs.prepare import Prepared
from jobs.worker import ShardReport
from storage.locations import creates_conditionally
from storage.runs import Run

FINISHED = ("complete", "failed")
MOST_ERRORS_TOLD = 3
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
    def interrupted(self) -> bool:
        return self.stopped in (Exit.INTERRUPTED, Exit.TERMINATED)

    @property
    def failed_images(self) -> int:
        return self.statuses.total() - self.statuses["ok"]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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


def start(run: Run, prepared: Prepared, attempt: Attempt) -> None:
    """Mark the run as running; the images' counts follow at its end."""
    run.write_summary({"state": "running", **_common(run, prepared, attempt)})


def complete(
    console: Console,
    run: Run,
    prepared: Prepared,
    attempt: Attempt,
    result: Aggregate,
    max_failed: float,
) -> Exit:
    """Close a run whose every row is written: summary.json, and a table of what lies where."""
    summary = _common(run, prepared, attempt) | {
        "statuses": dict(sorted(result.statuses.items())),
        "parts": result.parts,
        "parts_digest": result.digest,
        "classes_explained": len(result.names),
        "ended": now(),
    }
    code = _exit_code(summary, max_failed)
    summary["state"] = "complete" if code is Exit.COMPLETE else "failed"
    run.write_summary(summary)
    _tell_result(console, run, summary, code)
    return code


def incomplete(
    console: Console, run: Run, prepared: Prepared, attempt: Attempt, missing: list[Shard]
) -> Exit:
    """Say what is missing and why; the same command does the rest."""
    code = attempt.stopped or Exit.INCOMPLETE
    errors = Counter(failure.error for failure in attempt.failures)
    if attempt.problem is not None:
        errors[attempt.problem] += 1
    run.write_summary(
        _common(run, prepared, attempt)
        | {
            "state": "failed" if code is Exit.TOO_MANY_FAILED else "incomplete",
            "shards_missing": len(missing),
            "errors": dict(errors),
            "ended": now(),
        }
    )
    if attempt.problem is not None:
        console.print(attempt.problem, markup=False)
    for failure in attempt.failures[:MOST_ERRORS_TOLD]:
        console.print(f"shard {failure.shard.index} left undone: {failure.error}", markup=False)
    if len(attempt.failures) > MOST_ERRORS_TOLD:
        more = len(attempt.failures) - MOST_ERRORS_TOLD
        console.print(f"and {more} shards more; summary.json has their errors", markup=False)
    if code is Exit.TOO_MANY_FAILED:
        _tell_too_many_failed(console, attempt.failed_images, attempt.statuses.total())
    console.print(
        f"incomplete: {len(missing)} shards are not yet written to {run.root.shown}; the same "
        "command does the rest",
        markup=False,
    )
    return code


def _common(run: Run, prepared: Prepared, attempt: Attempt) -> dict[str, Any]:
    """What every summary holds; seconds and rate are the last attempt's."""
    seconds = {stage: round(value, 3) for stage, value in sorted(attempt.seconds.items())}
    images = attempt.statuses.total()
    return {
        "run": run.id,
        "rows": prepared.rows,
        "labels_unknown": prepared.labels_unknown,
        "last_attempt": {
            "images": images,
            "seconds": seconds,
            "images_per_second": round(images / seconds["run"], 2) if images else None,
        },
    }


def _exit_code(summary: Mapping[str, Any], max_failed: float) -> Exit:
    """The code of a run whose every row is written."""
    failed = summary["rows"] - summary["statuses"].get("ok", 0)
    return Exit.TOO_MANY_FAILED if failed > max_failed * summary["rows"] else Exit.COMPLETE


def tell_plan(console: Console, prepared: Prepared, planned: list[Shard]) -> None:
    """What will be explained, and what of the input is not as one might think."""
    grid, method, manifest = prepared.model.grid, prepared.method, prepared.manifest
    lines = [
        f"{prepared.rows} images in {len(planned)} shards; {prepared.model.name}, "
        f"{prepared.model.classes} classes, {grid[0]} x {grid[1]} patches; block {method.block}, "
        f"{method.residual} residual, {method.mask} masks, target {prepared.target.kind}"
    ]
    form = method.form(prepared.model)
    if form.name == "definition":
        passes = form.passes(prepared.model)
        lines.append(f"by the definition: about {passes:.0f} forward passes an image")
    if manifest.ignored:
        lines.append(f"{manifest.ignored} files beside them are no images by their names")
    if prepared.labels_unknown:
        lines.append(
            f"{prepared.labels_unknown} of {prepared.rows} labels are no class of the model: they "
            "stay in label_name, with a null label"
        )
    console.print("\n".join(lines), markup=False)


def warn_unless_conditional(console: Console, run: Run) -> None:
    """Say where the store does not keep two writers of one part apart."""
    if not creates_conditionally(run.root.child("run.json")):
        console.print(
            f"warning: the store of {run.root} does not refuse to create an object twice; run "
            "only one driver at a time on this run",
            markup=False,
        )


def tell_finished(
    console: Console, run: Run, config: ExplainConfig, summary: Mapping[str, Any]
) -> Exit:
    """A finished run was asked for again: it returns its code again."""
    code = _exit_code(summary, config.execution.max_failed)
    console.print("this run is finished; nothing to do")
    _tell_result(console, run, summary, code)
    return code


def _tell_too_many_failed(console: Console, failed: int, images: int) -> None:
    console.print(
        f"{failed} of {images} images failed, more than --max-failed allows; their rows say why "
        "(columns status and error); give a larger --max-failed if that is as it should be",
        markup=False,
    )


def _tell_result(console: Console, run: Run, summary: Mapping[str, Any], code: Exit) -> None:
    table = Table(title=f"run {run.id}", title_justify="left", show_header=False)
    statuses = ", ".join(f"{count} {status}" for status, count in summary["statuses"].items())
    rows = {"images": f"{summary['rows']}: {statuses}"}
    attempt = summary["last_attempt"]
    if attempt["images"]:
        seconds = attempt["seconds"]
        rows["speed"] = (
            f"{attempt['images_per_second']:g} images/s, start-up included "
            f"({seconds['start']:.0f} of {seconds['run']:.0f} s)"
        )
    root, pictures = run.root.shown, summary["classes_explained"]
    rows["explanations"] = f"{root}/explanations/ ({summary['parts']} Parquet parts)"
    rows["class heatmaps"] = f"{root}/class_heatmaps.parquet"
    rows["their pictures"] = f"{root}/class_heatmaps/*.png ({pictures} classes)"
    rows["summary"] = f"{root}/summary.json"
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)
    if code is Exit.TOO_MANY_FAILED:
        failed = summary["rows"] - summary["statuses"].get("ok", 0)
        _tell_too_many_failed(console, failed, summary["rows"])
