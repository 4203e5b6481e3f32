"""`saliency audit`, whole: a finished run -> sample -> examine classes -> verdicts -> findings."""

import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from explainer.classes import ClassNames
from jobs import audit_told, findings
from jobs.audit_plan import ClassImages, Recipients, candidates, class_images, recipients
from jobs.audit_worker import AuditJob
from jobs.cluster import Resources, connected, resources
from jobs.config import (
    AuditConfig,
    ConfigurationError,
    Exit,
)
from jobs.explain import follow, stopping
from jobs.findings import Report
from jobs.plan import Shard
from jobs.pool import Pool
from jobs.progress import RunProgress
from jobs.rerun_replica import RerunReplica
from jobs.subject import Subject, read_subject
from jobs.summary import Attempt, now
from storage.audits import Audit, open_or_create_audit
from storage.lease import Lease

# Raised when an audit of the same images would find something else.
AUDIT_VERSION = 12


@dataclass(frozen=True)
class Plan:
    """Which images of which classes are looked at, and into which others cues are pasted."""

    classes: list[ClassImages]
    recipients: Recipients

    def only(self, targets: set[int]) -> "Plan":
        """Some of the classes."""
        return Plan([c for c in self.classes if c.target in targets], self.recipients)

    @property
    def targets(self) -> set[int]:
        return {images.target for images in self.classes}


@dataclass(frozen=True)
class Outcome:
    """How an audit ended, and what it has found so far."""

    code: Exit
    report: Report


def audit(config: AuditConfig, console: Console) -> Outcome:
    """Audit a finished run, or go on with an audit; then tell the findings.

    Raises ConfigurationError where RUN is no finished run, or cannot be read as it was;
    FingerprintMismatch where its images or its model have changed since; RunHeld.
    """
    subject = read_subject(config, "an audit")
    found = candidates(subject.run, config.images, config.seed)
    plan = Plan(class_images(found), recipients(found))
    chosen = _chosen(config, plan, subject.prepared.model.class_names)
    audited = open_or_create_audit(subject.run, _identity(config, subject))
    tell = partial(console.print, markup=False)
    with Lease(audited.run.root).held(config.execution.take_over, tell) as lease:
        attempt = Attempt(lease)
        todo = plan.only(chosen - audited.committed())
        tell(f"{len(chosen)} classes, of which {len(todo.classes)} are to be examined")
        if todo.classes:
            examine_classes(config, subject, audited, todo, attempt, console)
        examined = audited.committed() & plan.targets
        report = _close(subject, audited, attempt, examined, len(plan.targets - examined))
    mine, missing = report.only(chosen), chosen - examined
    return Outcome(audit_told.tell(console, audited, mine, config, attempt, missing), mine)


def _close(
    subject: Subject, audited: Audit, attempt: Attempt, examined: set[int], missing: int
) -> Report:
    """Judge all classes that are examined, by this command or not, and write what was found.

    q-values are over the whole audit. After a signal nothing is judged: seconds are left.
    """
    model = subject.prepared.model
    stopped = attempt.signals.received is not None
    report = findings.judge(audited, model.class_names, set() if stopped else examined)
    if not stopped:
        findings.write(audited, report, model.grid)
    attempt.lease.check()
    state = "incomplete" if missing else "complete"
    audited.run.write_summary(
        {"state": state, "classes_missing": missing, "seconds": attempt.seconds, "ended": now()}
    )
    return report


def _chosen(config: AuditConfig, plan: Plan, names: ClassNames) -> set[int]:
    """The classes that are asked for. Raises ConfigurationError for one without images."""
    if config.classes is None:
        return plan.targets
    indices = {name: names.index(name) for name in config.classes.split(",")}
    unknown = [name for name, index in indices.items() if index not in plan.targets]
    if unknown:
        raise ConfigurationError(
            [f"--classes: {', '.join(unknown)} is no class of the run's images"]
        )
    return {index for index in indices.values() if index is not None}


def _identity(config: AuditConfig, subject: Subject) -> dict[str, Any]:
    """All that changes a finding."""
    description = subject.run.description
    return {
        "run": description["fingerprint"],
        "parts_digest": subject.parts_digest,
        "model": {"weights": description["fingerprint_of"]["model"]["weights"]},
        "images": config.images,
        "seed": config.seed,
        "audit_version": AUDIT_VERSION,
    }


def examine_classes(
    config: AuditConfig,
    subject: Subject,
    audited: Audit,
    todo: Plan,
    attempt: Attempt,
    console: Console,
) -> None:
    """Have replicas examine classes and publish the evidence, until all are or time is up."""
    shards = [Shard(i, 0, len(images.rows)) for i, images in enumerate(todo.classes)]
    ends = time.monotonic() + 60 * (config.budget or float("inf"))
    with stopping(attempt), connected(config.execution.address), attempt.signals.caught():
        pool = _pool(config, subject, audited, todo)
        images = sum(shard.rows for shard in shards)
        with (
            RunProgress(console, images, 0) as progress,
            closing(follow(pool, shards, attempt, progress)) as outcomes,
        ):
            for _ in outcomes:
                if time.monotonic() > ends:
                    return


def _pool(config: AuditConfig, subject: Subject, audited: Audit, todo: Plan) -> Pool:
    need = resources(config.execution)
    job = audit_job(config, subject, audited, todo, need)
    return Pool(job, need, config.execution, replica=RerunReplica)


def audit_job(
    config: AuditConfig, subject: Subject, audited: Audit, todo: Plan, need: Resources
) -> AuditJob:
    """What a replica needs to examine the classes of a plan."""
    prepared, run = subject.prepared, subject.run
    job = prepared.job(audited.run, run.manifest, need, config.execution, "float32")
    return AuditJob(
        **vars(job),
        finished=run,
        shards=prepared.shards(),
        classes=todo.classes,
        recipients=todo.recipients,
        seed=config.seed,
    )
