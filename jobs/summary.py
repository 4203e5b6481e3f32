"""summary.json, and what a run tells on the terminal: its plan, its end, and what to do next."""

import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from explainer.methods import passes_by_definition, shown
from jobs.aggregate import Aggregate
from jobs.bottleneck import bottleneck
from jobs.cluster import Resources
from jobs.config import Exit, ExplainConfig
from jobs.plan import Shard
from jobs.pool import Pool
from jobs.prepare import Prepared
from jobs.replica import ReplicaInfo
from jobs.shard_queue import ShardFailure
from jobs.signals import Signals
from jobs.worker import ShardReport
from storage.lease import Lease
from storage.locations import creates_conditionally
from storage.runs import Run

MOST_ERRORS_TOLD = 3
PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "pillow", "simplejpeg", "numpy")


@dataclass
class Attempt:
    """What one start of the driver did: totals over its shards, and what it had to leave.

    `lease` is its hold on the run, `signals` what told it to stop; `written` are the shards whose
    parts it saw, whatever a listing that lags says; `replicas` those that were ready; `result` is
    there once the class heatmaps are written.
    """

    lease: Lease
    signals: Signals = field(default_factory=Signals)
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    written: set[int] = field(default_factory=set)
    failures: list[ShardFailure] = field(default_factory=list)
    replicas: list[ReplicaInfo] = field(default_factory=list)
    limited_by: str | None = None
    stopped: Exit | None = None
    problem: str | None = None
    result: Aggregate | None = None

    def check(self) -> None:
        """Raise KeyboardInterrupt where a signal told to stop, and what `Lease.check` raises."""
        self.signals.check()
        self.lease.check()

    def add(self, report: ShardReport) -> None:
        """Count a shard's images and time."""
        self.written.add(report.shard.index)
        self.statuses.update(report.statuses)
        for stage, seconds in report.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def end(self, pool: Pool) -> None:
        """Note how long explaining took, how much of it was start-up, and what limited the rest.

        Start-up lasts until the first replica has its model, and then as long as replicas waited,
        on average, for their first batch.
        """
        ended = time.monotonic()
        self.replicas = pool.replicas
        replicas = max(1, len(pool.replicas))
        first_batch = self.seconds.pop("first_wait", 0.0) / replicas
        self.seconds["run"] = ended - self.started
        self.seconds["start"] = (pool.first_ready or ended) - self.started + first_batch
        if self.statuses:
            self.limited_by = bottleneck(self.seconds, replicas, pool.resources.device)

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
    left = f"{len(missing)} shards" if missing else "the class heatmaps"
    console.print(
        f"incomplete: {left} are not yet written to {run.root.shown}; the same command does the "
        "rest",
        markup=False,
    )
    return code


def _common(run: Run, prepared: Prepared, attempt: Attempt) -> dict[str, Any]:
    """What every summary holds; seconds and rates are the last attempt's."""
    seconds = {stage: round(value, 3) for stage, value in sorted(attempt.seconds.items())}
    last_attempt: dict[str, Any] = {
        "images": attempt.statuses.total(),
        "seconds": seconds,
        "replicas": [asdict(replica) for replica in attempt.replicas],
    }
    if attempt.statuses:
        images = attempt.statuses.total()
        after_start = attempt.seconds["run"] - attempt.seconds["start"]
        last_attempt |= {
            "images_per_second": round(images / attempt.seconds["run"], 2),
            "images_per_second_after_start": round(images / after_start, 2),
            "limited_by": attempt.limited_by,
        }
    return {
        "run": run.id,
        "rows": prepared.rows,
        "labels_unknown": prepared.labels_unknown,
        "last_attempt": last_attempt,
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
        f"{prepared.model.classes} classes, {grid[0]} x {grid[1]} patches; {shown(method)}, "
        f"target {prepared.target.kind}"
    ]
    passes = passes_by_definition(method, prepared.model)
    if passes is not None:
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
    if summary["last_attempt"]["images"]:
        rows |= _speed(summary["last_attempt"])
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


def _speed(attempt: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the table about an attempt's rate, and where its time went."""
    seconds = {stage: f"{value:.3g} s" for stage, value in attempt["seconds"].items()}
    replicas, loading = ("wait", "compute", "write"), ("fetch", "decode")
    return {
        "speed": (
            f"{attempt['images_per_second_after_start']:g} images/s after a start-up of "
            f"{seconds['start']}; {attempt['images_per_second']:g} with it"
        ),
        "time of replicas": ", ".join(f"{stage} {seconds[stage]}" for stage in replicas),
        "time of loading": ", ".join(f"{stage} {seconds[stage]}" for stage in loading),
        "bottleneck": attempt["limited_by"],
    }
