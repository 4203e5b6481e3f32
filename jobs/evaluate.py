"""`saliency evaluate`, whole: a finished run -> sample -> judge methods -> numbers and a plot."""

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from explainer import Method, evaluation
from explainer.methods import identity, parse
from jobs import evaluate_told
from jobs.cluster import Resources, connected, resources
from jobs.config import ConfigurationError, EvaluateConfig, Exit
from jobs.evaluate_plan import Sample, draw
from jobs.evaluate_replica import EvaluateReplica
from jobs.evaluate_worker import EvaluateJob
from jobs.explain import BATCH_SIZE, follow, stopping
from jobs.options import read_options
from jobs.plan import remaining
from jobs.pool import Pool
from jobs.prepare import INPUT_ERRORS
from jobs.progress import RunProgress
from jobs.subject import Subject, read_subject
from jobs.summary import Attempt, now
from storage.boxes import Boxes, read_boxes
from storage.evaluations import Evaluation, open_or_create_evaluation
from storage.lease import Lease
from storage.parts import in_order
from storage.schema import encode_parquet
from storage.trust import named

# Raised when an evaluation of the same images would find other numbers.
EVALUATION_VERSION = 1
READERS = 16


@dataclass(frozen=True)
class Plan:
    """What is judged: methods by the names they are told under, on which images, and where what
    matters lies in them, if that is known."""

    methods: dict[str, Method]
    sample: Sample
    boxes: Boxes | None


def evaluate(config: EvaluateConfig, console: Console) -> Exit:
    """Evaluate methods on a finished run, or go on with it; then tell the numbers.

    Raises ConfigurationError where RUN is no finished run, or cannot be read as it was, or a method
    is none or is not defined for its model; FingerprintMismatch; RunHeld.
    """
    subject = read_subject(config, "an evaluation")
    plan = read_plan(config, subject)
    evaluated = open_or_create_evaluation(subject.run, _identity(config, subject, plan))
    tell = partial(console.print, markup=False)
    shards = plan.sample.shards()
    with Lease(evaluated.run.root).held(config.take_over, tell) as lease:
        attempt = Attempt(lease)
        todo = remaining(shards, evaluated.committed())
        tell(
            f"{len(plan.methods)} methods on {len(plan.sample.rows)} images, of which "
            f"{sum(shard.rows for shard in todo)} are to be judged"
        )
        if todo:
            with stopping(attempt), connected(config.address), attempt.signals.caught():
                _judge(config, subject, evaluated, plan, attempt, console)
        missing = remaining(shards, evaluated.committed())
        found = [] if missing else close(evaluated, plan)
        attempt.lease.check()
        state = "incomplete" if missing else "complete"
        images = sum(shard.rows for shard in missing)
        evaluated.run.write_summary(
            {"state": state, "images_missing": images, "seconds": attempt.seconds, "ended": now()}
        )
    evaluate_told.tell(console, evaluated, found, attempt, images)
    return attempt.stopped or (Exit.INCOMPLETE if missing else Exit.COMPLETE)


def read_plan(config: EvaluateConfig, subject: Subject) -> Plan:
    """What is judged. Raises ConfigurationError with all that is wrong."""
    problems: list[str] = []
    methods: dict[str, Method] = {}
    model = subject.prepared.model
    for name in config.methods.split(","):
        try:
            method = parse(name)
            method.check(model, allow_definition=True)
            methods[name] = method.resolved(model)
        except ValueError as error:
            problems.append(f"--methods: {error}")
    boxes = None
    if config.boxes is not None:
        try:
            boxes = read_boxes(named(config.boxes, read_options(config.input_storage)))
        except INPUT_ERRORS as error:
            problems.append(f"--boxes: {error}")
    sample = draw(subject.run, config.sample, config.seed, config.target)
    if not len(sample.rows):
        problems.append(f"--target {config.target}: no explained image of the run has one")
    if problems:
        raise ConfigurationError(problems)
    return Plan(methods, sample, boxes)


def close(evaluated: Evaluation, plan: Plan) -> list[evaluation.Score]:
    """Write all numbers as one table, and what they come to as another and as a plot."""
    parts = in_order(evaluated.read, [shard.index for shard in plan.sample.shards()], READERS)
    numbers = pa.concat_tables(parts)
    evaluated.numbers.replace(encode_parquet(numbers, {"run": evaluated.run.id}))
    found = evaluation.scores(by_method(numbers, list(plan.methods)))
    table = evaluate_told.table(found)
    evaluated.methods.replace(encode_parquet(table, {"run": evaluated.run.id}))
    evaluated.plot.replace(evaluate_told.plot(found))
    return found


def by_method(numbers: pa.Table, methods: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Each method's metrics, as arrays over the images in the order of their rows."""
    frame = numbers.sort_by("row")
    names, metrics = (frame[name].to_numpy() for name in ("method", "metric"))
    values = frame["value"].to_numpy()  # null is NaN
    return {
        method: {
            metric: values[(names == method) & (metrics == metric)]
            for metric in evaluation.METRICS
            if ((names == method) & (metrics == metric)).any()
        }
        for method in methods
    }


def _judge(
    config: EvaluateConfig,
    subject: Subject,
    evaluated: Evaluation,
    plan: Plan,
    attempt: Attempt,
    console: Console,
) -> None:
    """Have replicas judge what is left of the sample and publish the numbers."""
    shards = plan.sample.shards()
    todo = remaining(shards, evaluated.committed())
    need = resources(config.execution)
    job = evaluate_job(config, subject, evaluated, plan, need)
    pool = Pool(job, need, config.execution, replica=EvaluateReplica)
    images = sum(shard.rows for shard in shards)
    done = images - sum(shard.rows for shard in todo)
    with (
        RunProgress(console, images, done) as progress,
        closing(follow(pool, todo, attempt, progress)) as outcomes,
    ):
        for _ in outcomes:
            pass


def evaluate_job(
    config: EvaluateConfig,
    subject: Subject,
    evaluated: Evaluation,
    plan: Plan,
    need: Resources,
) -> EvaluateJob:
    """What a replica needs to judge any shard of a sample."""
    prepared = subject.prepared
    return EvaluateJob(
        model=prepared.model,
        method=prepared.method,
        target=prepared.target,
        run=evaluated.run,
        rows=prepared.manifest.source(subject.run.manifest),
        reading=prepared.reading,
        batch_size=config.batch_size or BATCH_SIZE[need.device],
        precision="float32",
        device=need.device,
        threads=need.threads,
        evaluated=subject.run,
        shards=prepared.shards(),
        sampled=plan.sample.rows,
        targets=plan.sample.targets,
        methods=plan.methods,
        steps=config.steps,
        boxes=None if plan.boxes is None else plan.boxes.of,
        seed=config.seed,
    )


def _identity(config: EvaluateConfig, subject: Subject, plan: Plan) -> dict[str, Any]:
    """All that changes a number."""
    description = subject.run.description
    return {
        "run": description["fingerprint"],
        "parts_digest": subject.parts_digest,
        "model": {"weights": description["fingerprint_of"]["model"]["weights"]},
        "methods": {name: identity(method) for name, method in plan.methods.items()},
        "sample": config.sample,
        "seed": config.seed,
        "target": config.target,
        "steps": config.steps,
        "boxes": None if plan.boxes is None else plan.boxes.digest,
        "evaluation_version": EVALUATION_VERSION,
    }
