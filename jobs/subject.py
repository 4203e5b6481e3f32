"""A finished run that another job looks into, with its images and its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config import (
    AuditConfig,
    ConfigurationError,
    EvaluateConfig,
    ExecutionConfig,
    ExplainConfig,
    InputConfig,
    MethodConfig,
    ModelConfig,
)
from jobs.options import read_options
from jobs.prepare import INPUT_ERRORS, Prepared, prepare
from storage.runs import FINISHED, Run, compare, open_run, with_fingerprint
from storage.trust import named


@dataclass(frozen=True)
class Subject:
    """A finished run, with all that its images and its model need."""

    run: Run
    prepared: Prepared
    parts_digest: str


def read_subject(config: AuditConfig | EvaluateConfig, what: str) -> Subject:
    """The run that `what` is to look into, its images and model as they were when it was explained.

    Raises ConfigurationError where there is no finished run or it cannot be read as it was, and
    FingerprintMismatch where its images or its model have changed since.
    """
    problems = config.problems()
    if problems:
        raise ConfigurationError(problems)
    try:
        run = open_run(named(config.run, read_options(config.output_storage)))
        summary = run.read_summary()
    except INPUT_ERRORS as error:
        raise ConfigurationError([f"RUN: {error}"]) from error
    state = None if summary is None else summary["state"]
    if summary is None or state not in FINISHED:
        raise ConfigurationError(
            [
                f"RUN: {what} needs a run whose every image is explained; {run.root} is "
                f"{state or 'not begun'}: let `saliency explain` end first"
            ]
        )
    prepared = prepare(_explained_by(config, run.description["config"]))
    compare(run.root, run.description, with_fingerprint(prepared.description))
    return Subject(run, prepared, summary["parts_digest"])


def _explained_by(config: AuditConfig | EvaluateConfig, stored: Mapping[str, Any]) -> ExplainConfig:
    """The command that made a run, from its run.json, with the options of stores anew."""
    model: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored["model"].items()
    }
    return ExplainConfig(
        model=ModelConfig(**model),
        out=config.run,
        input=InputConfig(**stored["input"], storage=config.input_storage),
        method=MethodConfig(**stored["method"]),
        execution=ExecutionConfig(**vars(config.execution), allow_definition=True),
        output_storage=config.output_storage,
    )
