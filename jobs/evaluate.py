"""`saliency evaluate`, whole: a finished run -> sample -> judge methods -> numbers and a plot."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from explainer import Method
from explainer.methods import identity, parse
from explainer.resampling import scores
from jobs import evaluate_told
from jobs.cluster import Resources, connected, resources
from jobs.config import ConfigurationError, EvaluateConfig, Exit
from jobs.evaluate_plan import Sample, draw
from jobs.evaluate_told import Evaluated
from jobs.evaluate_worker import EvaluateJob, covered
from jobs.explain import follow, stopping
from jobs.options import read_options
from jobs.plan import Shard, remaining
from jobs.pool import Pool
from jobs.prepare import INPUT_ERRORS
from jobs.progress import RunProgress
from jobs.rerun_replica import RerunReplica
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

    @property
    def shards(self) -> list[Shard]:
        return self.sample.shards()


def evaluate(config: EvaluateConfig, console: Console) -> Exit:
    """Evaluate methods on a finished run, or go on with it; then tell the numbers.

    Raises ConfigurationError where RUN is no finished run, or cannot be read as it was, or a method
    is none or is not defined for its model; FingerprintMismatch; RunHeld.
    """
    subject = read_subject(config, "an evaluation")
    plan = read_plan(config, subject)
    evaluation = open_or_create_evaluation(subject.run, _identity(config, subject, plan))
    tell = partial(console.print, markup=False)
    with Lease(evaluation.run.root).held(config.execution.take_over, tell) as lease:
        attempt = Attempt(lease)
        todo = remaining(plan.shards, evaluation.committed())
        tell(
            f"{len(plan.methods)} methods on {len(plan.sample.rows)} images, of which "
            f"{sum(shard.rows for shard in todo)} are to be judged"
        )
        if todo:
            with stopping(attempt), connected(config.execution.address), attempt.signals.caught():
                _judge(config, subject, evaluation, plan, attempt, console)
        missing = remaining(plan.shards, evaluation.committed())
        found = None if missing else close(evaluation, plan)
        attempt.lease.check()
        images = sum(shard.rows for shard in missing)
        if todo:
            state = "incomplete" if missing else "complete"
            _summarise(evaluation, attempt, {"state": state, "images_missing": images}, found)
    evaluate_told.tell(console, evaluation, found, attempt, images)
    return attempt.stopped or (Exit.INCOMPLETE if missing else Exit.COMPLETE)


def _summarise(
    evaluation: Evaluation, attempt: Attempt, state: dict[str, Any], found: Evaluated | None
) -> None:
    left_out = {} if found is None else {"left_out": len(found.left_out)}
    times = {"seconds": attempt.seconds, "ended": now()}
    evaluation.run.write_summary(state | left_out | times)


def read_plan(config: EvaluateConfig, subject: Subject) -> Plan:
    """What is judged. Raises ConfigurationError with all that is wrong."""
    problems: list[str] = []
    methods: dict[str, Method] = {}
    model = subject.prepared.model
    if model.classes < 2:
        problems.append("RUN: its model has one class, whose probability is 1 whatever is shown")
    for name in config.methods.split(","):
        try:
            method = parse(name)
            method.check(model, allow_definition=True)
            methods[name] = method.resolved(model)
        except ValueError as error:
            problems.append(f"--methods: {error}")
    sample = draw(subject.run, config.sample, config.seed, config.target)
    if not len(sample.rows):
        problems.append(f"--target {config.target}: no explained image of the run has one")
    boxes = None
    if config.boxes is not None:
        try:
            boxes = _read_boxes(config.boxes, read_options(config.input_storage), subject, sample)
        except INPUT_ERRORS as error:
            problems.append(f"--boxes: {error}")
    if problems:
        raise ConfigurationError(problems)
    return Plan(methods, sample, boxes)


def _read_boxes(url: str, options: Mapping[str, Any], subject: Subject, sample: Sample) -> Boxes:
    """The boxes or masks of the sampled images. Raises ValueError for a mask that is none."""
    location = named(url, options)  # which shows no signature
    boxes = read_boxes(location).only(set(sample.names))
    for name, size in zip(sample.names, sample.sizes, strict=True):
        try:
            covered(subject.prepared.model.preprocessing, boxes, name, size)
        except ValueError as error:
            raise ValueError(f"{location}: {name!r}: {error}") from error
    return boxes


def close(evaluation: Evaluation, plan: Plan) -> Evaluated:
    """Write all numbers as one table, and what they come to as another and as a plot."""
    parts = list(in_order(evaluation.read, [shard.index for shard in plan.shards], READERS))
    numbers = pa.concat_tables([part.numbers for part in parts])
    evaluation.numbers.replace(encode_parquet(numbers, {"run": evaluation.run.id}))
    left_out = {row: why for part in parts for row, why in part.left_out.items()}
    if not len(numbers):
        return Evaluated([], left_out)
    of_images = by_method([part.numbers for part in parts])
    found = scores(of_images.numbers, list(plan.methods), of_images.batches)
    table = evaluate_told.table(found)
    evaluation.methods.replace(encode_parquet(table, {"run": evaluation.run.id}))
    evaluation.plot.replace(evaluate_told.plot(found))
    return Evaluated(found, left_out)


@dataclass(frozen=True)
class OfImages:
    """By method and metric a number for each image, and which images were judged together."""

    numbers: dict[tuple[str, str], NDArray[np.float64]]
    batches: NDArray[np.int64]


def by_method(parts: Sequence[pa.Table]) -> OfImages:
    """The numbers of parts, in which rows are in any order; NaN where there is none."""
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    rows = [np.unique(part["row"].to_numpy()) for part in parts]
    starts = np.cumsum([0, *(len(each) for each in rows)])
    for part, mine, start in zip(parts, rows, starts, strict=False):
        places = start + np.searchsorted(mine, part["row"].to_numpy())
        values = part["value"].to_numpy()  # null is NaN
        codes, names = zip(*(_coded(part[name]) for name in ("method", "metric")), strict=True)
        for method, metric in np.unique(np.stack(codes), axis=1).T:
            key = names[0][method], names[1][metric]
            inside = (codes[0] == method) & (codes[1] == metric)
            column = found.setdefault(key, np.full(starts[-1], np.nan))
            column[places[inside]] = values[inside]
    lengths = [len(each) for each in rows]
    return OfImages(found, np.repeat(np.arange(len(parts)), lengths))


def _coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """A column's values as indices of its distinct ones."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _judge(
    config: EvaluateConfig,
    subject: Subject,
    evaluation: Evaluation,
    plan: Plan,
    attempt: Attempt,
    console: Console,
) -> None:
    """Have replicas judge what is left of the sample and publish the numbers."""
    todo = remaining(plan.shards, evaluation.committed())
    need = resources(config.execution)
    job = evaluate_job(config, subject, evaluation, plan, need)
    pool = Pool(job, need, config.execution, replica=RerunReplica)
    images = len(plan.sample.rows)
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
    evaluation: Evaluation,
    plan: Plan,
    need: Resources,
) -> EvaluateJob:
    """What a replica needs to judge any shard of a sample."""
    prepared, run = subject.prepared, subject.run
    job = prepared.job(evaluation.run, run.manifest, need, config.execution, "float32")
    return EvaluateJob(
        **vars(job),
        finished=run,
        shards=prepared.shards(),
        sample=plan.sample,
        methods=plan.methods,
        steps=config.steps,
        boxes=plan.boxes,
        seed=config.seed,
    )


def _identity(config: EvaluateConfig, subject: Subject, plan: Plan) -> dict[str, Any]:
    """All that changes a number."""
    description = subject.run.description
    return {
        "run": description["fingerprint"],
        "parts_digest": subject.parts_digest,
        "model": {"weights": description["fingerprint_of"]["model"]["weights"]},
        "methods": [[name, identity(method)] for name, method in plan.methods.items()],
        "sample": config.sample,
        "seed": config.seed,
        "target": config.target,
        "steps": config.steps,
        "boxes": None if plan.boxes is None else plan.boxes.digest,
        "evaluation_version": EVALUATION_VERSION,
    }
