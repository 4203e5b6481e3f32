"""What a run was and how it went, in words, for the report's first table."""

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.finished import Finished
from jobs.report_findings import Findings

SHOWN_DIGITS = 16


def facts(finished: Finished, findings: Findings | None) -> list[tuple[str, str]]:
    """Name and value of everything that identifies a run, and what it took."""
    description, summary = finished.run.description, finished.summary
    told = [("run", f"{finished.run.id}, {finished.run.root.shown}")]
    told += list(_identity(description))
    told += [
        ("begun, ended", f"{description['created']}, {summary['ended']}"),
        ("parts", f"{summary['parts']}, digest {summary['parts_digest'][:SHOWN_DIGITS]}"),
    ]
    told += list(_speed(summary.get("last_attempt", {})))
    told += list(_attempts(finished))
    if findings is None:
        return [*told, ("audit", "none: `saliency audit RUN` looks for shortcuts")]
    missing = findings.missing
    lacks = f"; incomplete, {missing} classes are not examined" if missing else ""
    ended = findings.summary["ended"]
    return [*told, ("audit", f"{findings.audit.run.root.name}, ended {ended}{lacks}")]


def _identity(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    of, asked = description["fingerprint_of"], description.get("config", {})
    model, images = of["model"], asked.get("input", {})
    yield "images", str(images.get("images") or images.get("manifest"))
    yield "manifest", f"{description['rows']} rows, digest {of['manifest'][:SHOWN_DIGITS]}"
    yield "model", f"{model['name']}, weights {model['weights'][:SHOWN_DIGITS]}"
    checkpoint = asked.get("model", {}).get("checkpoint")
    yield "checkpoint", str(checkpoint or "timm's pretrained weights")
    yield "method", _flat(of["method"])
    yield "precision", of["precision"]
    yield "preprocessing", _flat(of["preprocessing"])


def _speed(attempt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not attempt.get("images"):
        return
    seconds = ", ".join(f"{stage} {value:.3g}" for stage, value in attempt["seconds"].items())
    rate = attempt["images_per_second_after_start"]
    yield (
        "throughput",
        f"{rate:g} images/s after the start, {attempt['images_per_second']:g} with it",
    )
    yield "seconds", seconds
    yield "bottleneck", attempt["limited_by"]


def _attempts(finished: Finished) -> Iterator[tuple[str, str]]:
    """How often a driver was started, and where the last start ran."""
    start = finished.run.last_attempt()
    if start is None:
        return
    last = start.info
    resources, versions = last.get("resources", {}), last.get("versions", {})
    replicas = f"{resources.get('replicas')} on {resources.get('device')}"
    yield "starts of a driver", f"{start.number}; the last with replicas: {replicas}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _flat(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_plain(inner)}" for name, inner in value.items())


def _plain(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
