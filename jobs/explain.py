"""`saliency explain`, whole: prepare -> plan -> dispatch -> commit -> aggregate -> summary."""

import signal
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any

from rich.console import Console

from jobs import heatmaps, logs, summary
from jobs.aggregate import FEW_PARTS, Aggregate, ClassHeatmap, aggregate, class_heatmaps, read_means
from jobs.cluster import INFRASTRUCTURE, ClusterError, connected, in_order, reason, resources
from jobs.config import ConfigurationError, ExecutionConfig, Exit, ExplainConfig
from jobs.plan import Shard, remaining
from jobs.pool import Pool
from jobs.prepare import Prepared, prepare
from jobs.progress import RunProgress
from jobs.replica import Replica
from jobs.retry import shards_to_retry
from jobs.shard_queue import ShardFailure
from jobs.summary import Attempt
from jobs.watched_pool import WatchedPool
from storage import schema
from storage.lease import Lease
from storage.runs import FINISHED, Run, open_or_create

PICTURE_WRITERS = 16
# So few failed images stop no run in its midst: of a small dataset one is more than 1%.
FEW_IMAGES = 16


def explain(config: ExplainConfig, console: Console, replica: type[Replica] = Replica) -> Exit:
    """Run or resume what `config` describes; a finished run is said to be so, and left alone.

    A connection to Ray that this process has is used, and kept; `replica` does the work. Raises
    ConfigurationError, FingerprintMismatch where `out` holds another run, and RunHeld where another
    driver is at work on it.
    """
    if config.execution.json_log:
        logs.to_stderr()
    prepared = prepare(config)
    planned = prepared.shards()
    summary.tell_plan(console, prepared, planned)
    if config.execution.dry_run:
        return Exit.COMPLETE

    run = open_or_create(prepared.out, prepared.description)
    known = finished(run, remaining(planned, run.committed()))
    if known is not None and not config.execution.retry_failed:
        return summary.tell_finished(console, run, config, known)

    summary.warn_unless_conditional(console, run)
    if prepared.manifest.data is not None:
        run.manifest.create(prepared.manifest.data)
    take_over = config.execution.take_over
    with Lease(run.root).held(take_over, partial(console.print, markup=False)) as lease:
        return _explain_held(prepared, config, run, Attempt(lease), console, replica)


def _explain_held(
    prepared: Prepared,
    config: ExplainConfig,
    run: Run,
    attempt: Attempt,
    console: Console,
    replica: type[Replica],
) -> Exit:
    """Do what is left of a run that this driver holds, and close it or say what is missing."""
    planned = prepared.shards()
    todo = shards_to_do(run, planned, config.execution)
    if (known := finished(run, todo)) is not None:  # by the driver that was waited for
        return summary.tell_finished(console, run, config, known)
    summary.start(run, prepared, attempt)
    cluster = connected(config.execution.address) if needs_ray(todo, planned) else nullcontext()
    with stopping(attempt), cluster, attempt.signals.caught():
        dispatch(prepared, config, run, todo, attempt, console, replica)
        if not attempt.failures and not remaining(planned, run.committed() | attempt.written):
            attempt.result = publish_class_heatmaps(run, planned, prepared.model.grid, attempt)
    attempt.lease.check()
    if attempt.result is None:
        missing = remaining(planned, run.committed() | attempt.written)
        return summary.incomplete(console, run, prepared, attempt, missing)
    tolerated = config.execution.max_failed
    return summary.complete(console, run, prepared, attempt, attempt.result, tolerated)


def finished(run: Run, todo: list[Shard]) -> Mapping[str, Any] | None:
    """The summary of a run whose every shard is written and summed up, else None."""
    known = None if todo else run.read_summary()
    return known if known is not None and known["state"] in FINISHED else None


def shards_to_do(run: Run, planned: list[Shard], execution: ExecutionConfig) -> list[Shard]:
    """The shards without a part, and those whose failed images are to be tried again."""
    todo = remaining(planned, committed := run.committed())
    if execution.retry_failed:
        todo += shards_to_retry(run, [shard for shard in planned if shard.index in committed])
    return todo


def needs_ray(todo: list[Shard], planned: list[Shard]) -> bool:
    """Whether there are images to explain, or more parts to aggregate than one process should."""
    return bool(todo) or len(planned) >= FEW_PARTS


def dispatch(
    prepared: Prepared,
    config: ExplainConfig,
    run: Run,
    todo: list[Shard],
    attempt: Attempt,
    console: Console,
    replica: type[Replica],
) -> None:
    """Have replicas explain and publish `todo`; ends early where too many images fail."""
    if not todo:
        return
    pool = _pool(prepared, config, run, replica)
    run.begin_attempt(summary.attempt_info(config, pool.resources))
    done = prepared.rows - sum(shard.rows for shard in todo)
    tolerated = max(config.execution.max_failed * prepared.rows, FEW_IMAGES)
    try:
        with RunProgress(console, prepared.rows, done) as progress:
            _watch(pool, todo, attempt, progress, tolerated)
    finally:
        attempt.end(pool)


def _pool(prepared: Prepared, config: ExplainConfig, run: Run, replica: type[Replica]) -> Pool:
    need = resources(config.execution)
    asked, precision = config.execution, config.method.precision
    job = prepared.job(run, run.manifest, need, asked, precision)
    committed = run.committed() if config.execution.retry_failed else set()
    return Pool(job, need, config.execution, frozenset(committed), replica)


def _watch(
    pool: Pool, todo: list[Shard], attempt: Attempt, progress: RunProgress, tolerated: float
) -> None:
    """Count what comes back until all shards are settled or too many images have failed."""
    with closing(follow(pool, todo, attempt, progress)) as outcomes:
        for _ in outcomes:
            if attempt.failed_images > tolerated:
                attempt.stopped = Exit.TOO_MANY_FAILED
                return


def follow(
    pool: Pool, todo: list[Shard], attempt: Attempt, progress: RunProgress
) -> Generator[None]:
    """Note and show what becomes of shards, and yield each time that something or nothing has.

    Leaving the iterator early ends the replicas. Raises what `Pool.explain` and `Lease.check` do.
    """
    with closing(pool.explain(todo)) as outcomes, WatchedPool(pool) as watched:
        for outcome in outcomes:
            if isinstance(outcome, ShardFailure):
                attempt.failures.append(outcome)
                watched.undone(outcome)
            elif outcome is not None:
                attempt.add(outcome)
                watched.written(outcome)
                failed = outcome.shard.rows - outcome.statuses.get("ok", 0)
                progress.advance(outcome.shard.rows, failed)
            while pool.news:
                progress.tell(news := pool.news.pop(0))
                watched.tell(news)
            watched.show()
            progress.show(pool.live, pool.resources.replicas)
            attempt.check()
            yield


def publish_class_heatmaps(
    run: Run, planned: list[Shard], grid: tuple[int, int], attempt: Attempt
) -> Aggregate:
    """Aggregate all parts into class_heatmaps.parquet and a picture a class.

    Many parts are summed by tasks all over the cluster, few by this process, to the same bytes.
    """
    started = time.monotonic()
    parts = [shard.index for shard in planned]
    result = aggregate(run, parts, grid, map if len(parts) < FEW_PARTS else in_order)
    table = class_heatmaps(result, grid)
    metadata = {"run": run.id, "parts_digest": result.digest}
    run.class_heatmaps.replace(schema.encode_parquet(table, metadata))

    def draw(heatmap: ClassHeatmap) -> None:
        picture = heatmaps.png(heatmap.mean.reshape(grid), heatmap.name, heatmap.count)
        run.class_heatmap_picture(f"{heatmap.target:05d}-{heatmap.name}").replace(picture)

    with ThreadPoolExecutor(PICTURE_WRITERS) as writers:
        list(writers.map(draw, read_means(table)))
    attempt.seconds["aggregate"] = time.monotonic() - started
    return result


@contextmanager
def stopping(attempt: Attempt) -> Iterator[None]:
    """Note in `attempt` what stops a run and leaves it resumable; only a bug goes on."""
    try:
        yield
    except ConfigurationError as error:
        attempt.stopped, attempt.problem = Exit.BAD_INPUT, str(error)
    except ClusterError as error:
        attempt.stopped, attempt.problem = Exit.INCOMPLETE, str(error)
    except INFRASTRUCTURE as error:
        attempt.stopped, attempt.problem = Exit.INCOMPLETE, reason(error)
    except KeyboardInterrupt:
        terminated = attempt.signals.received == signal.SIGTERM
        attempt.stopped = Exit.TERMINATED if terminated else Exit.INTERRUPTED
