"""`saliency explain`, whole: prepare -> plan -> dispatch -> commit -> aggregate -> summary."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import FrameType

import ray
from rich.console import Console

from jobs import heatmaps, summary
from jobs.aggregate import Aggregate, ClassHeatmap, aggregate, class_heatmaps, read_means
from jobs.config import ConfigurationError, Exit, ExplainConfig
from jobs.plan import Shard, remaining
from jobs.pool import ClusterError, Pool, ShardFailure, connect, resources
from jobs.prepare import Prepared, prepare
from jobs.progress import RunProgress
from jobs.summary import Attempt
from jobs.worker import Job
from storage import schema
from storage.runs import Run, open_or_create

PICTURE_WRITERS = 16
BATCH_SIZE = {"cpu": 32, "cuda": 128}
# So few failed images stop no run in its midst: of a small dataset one is more than 1%.
FEW_IMAGES = 16


def explain(config: ExplainConfig, console: Console) -> Exit:
    """Run or resume what `config` describes; a finished run is said to be so, and left alone.

    Raises ConfigurationError, and FingerprintMismatch where `out` holds another run.
    """
    prepared = prepare(config)
    planned = prepared.shards()
    summary.tell_plan(console, prepared, planned)
    if config.execution.dry_run:
        return Exit.COMPLETE

    run = open_or_create(prepared.out, prepared.description)
    todo = remaining(planned, run.committed())
    finished = run.read_summary()
    if not todo and finished is not None and finished["state"] in summary.FINISHED:
        return summary.tell_finished(console, run, config, finished)

    summary.warn_unless_conditional(console, run)
    if prepared.manifest.data is not None:
        run.manifest.create(prepared.manifest.data)
    attempt = dispatch(prepared, config, run, todo, console)
    missing = remaining(planned, run.committed())
    if missing or attempt.interrupted:
        return summary.incomplete(console, run, prepared, attempt, missing)
    result = publish_class_heatmaps(run, planned, prepared.model.grid, attempt)
    return summary.complete(console, run, prepared, attempt, result, config.execution.max_failed)


def dispatch(
    prepared: Prepared, config: ExplainConfig, run: Run, todo: list[Shard], console: Console
) -> Attempt:
    """Have replicas explain and publish `todo`; ends early by a signal or too many failures."""
    attempt = Attempt()
    if not todo:
        return attempt
    started = time.monotonic()
    summary.start(run, prepared, attempt)
    signals = Signals()
    try:
        connect(config.execution.address)
        pool = _pool(prepared, config, run)
        attempt.seconds["start"] = time.monotonic() - started
        run.begin_attempt(summary.attempt_info(config, pool.resources))
        done = prepared.rows - sum(shard.rows for shard in todo)
        tolerated = max(config.execution.max_failed * prepared.rows, FEW_IMAGES)
        with signals.caught(), RunProgress(console, prepared.rows, done) as progress:
            _watch(pool, todo, attempt, progress, tolerated)
    except ClusterError as error:
        attempt.stopped, attempt.problem = Exit.INCOMPLETE, str(error)
    except ConfigurationError as error:
        attempt.stopped, attempt.problem = Exit.BAD_INPUT, str(error)
    except KeyboardInterrupt:
        attempt.stopped = Exit.TERMINATED if signals.terminated else Exit.INTERRUPTED
    finally:
        ray.shutdown()
    attempt.seconds["run"] = time.monotonic() - started
    return attempt


def _pool(prepared: Prepared, config: ExplainConfig, run: Run) -> Pool:
    need = resources(config.execution)
    job = Job(
        model=prepared.model,
        method=prepared.method,
        target=prepared.target,
        run=run,
        rows=prepared.manifest.source(run.manifest),
        reading=prepared.reading,
        batch_size=config.execution.batch_size or BATCH_SIZE[need.device],
        precision=config.method.precision,
        device=need.device,
        threads=need.threads,
    )
    return Pool(job, need, config.execution.start_timeout)


def _watch(
    pool: Pool, todo: list[Shard], attempt: Attempt, progress: RunProgress, tolerated: float
) -> None:
    """Count what comes back until all shards are settled or too many images have failed."""
    with closing(pool.explain(todo)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, ShardFailure):
                attempt.failures.append(outcome)
            elif outcome is not None:
                attempt.add(outcome)
                failed = outcome.shard.rows - outcome.statuses.get("ok", 0)
                progress.advance(outcome.shard.rows, failed)
            while pool.losses:
                progress.tell(f"a replica was lost: {pool.losses.pop()}")
            progress.show(pool.live, pool.resources.replicas)
            if attempt.failed_images > tolerated:
                attempt.stopped = Exit.TOO_MANY_FAILED
                return


def publish_class_heatmaps(
    run: Run, planned: list[Shard], grid: tuple[int, int], attempt: Attempt
) -> Aggregate:
    """Aggregate all parts into class_heatmaps.parquet and a picture a class."""
    started = time.monotonic()
    result = aggregate(run, [shard.index for shard in planned], grid)
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


class Signals:
    """SIGTERM as a KeyboardInterrupt, which is the only one that Ray's calls let through."""

    terminated = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """To be entered after Ray has started, which installs a handler of its own."""

        def terminate(_signal: int, _frame: FrameType | None) -> None:
            self.terminated = True
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
