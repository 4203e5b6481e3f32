"""A finished run of images with hostile names, and an audit of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.config import ExecutionConfig, Exit, ExplainConfig, InputConfig, ModelConfig
from storage.locations import Location

HOSTILE_CLASSES = ("pentagon", "a/b", "../up", "<script>alert(1)</script>", '\u202e"=1+1", x')
HOSTILE_IDS = (
    *("a/b/c.jpg", "../../etc/passwd", "line\nend", "<b>.jpg", '"quoted", =1+1', "\u202egpj.exe"),
    *(f"image {number}" for number in range(6, 24)),
)


@dataclass(frozen=True)
class AuditedRun:
    """A finished run of images with hostile names, one of which is missing, and its audit."""

    root: Path
    audit: str
    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    missing: int


def _write_hostile_images(folder: Path) -> Path:
    """24 pictures of many sizes and their list: some without a label, one with a strange one."""
    random, lines = np.random.default_rng(7), []
    for number, image_id in enumerate(HOSTILE_IDS):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = (70 + 5 * number, 180 - 6 * number)
        name = "new\nline.jpg" if number == 3 else f"{number:03d}.{'png' if number % 5 else 'jpg'}"
        exif = Image.Exif()
        if number == 5:
            exif[0x0112] = 6  # turned by a quarter
        if number != 7:
            Image.fromarray(coarse).resize(size).save(folder / name, exif=exif)
        label = {8: None, 9: "stranger"}.get(number, HOSTILE_CLASSES[number % 5])
        lines.append({"image_id": image_id, "uri": name, "label": label})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "list.jsonl"


def _write_audit(run: Any) -> str:
    """An audit's tables, as `saliency audit` writes them: four cues, one of them on no image."""
    import pyarrow as pa

    from storage import audit_schema, schema
    from storage.audits import open_or_create_audit

    summary = run.read_summary()
    identity = {"run": run.description["fingerprint"], "parts_digest": summary["parts_digest"]}
    audit = open_or_create_audit(run, identity)
    common = {"reason": "a reason, with\na line", "images": 9, "explained": 9, "candidates": 1}
    common["apart"] = 0.5
    found = [(0, 0, "shortcut", 0.5), (2, 1, "compact cue: look at it", 0.2)]
    found += [(3, 0, "not testable", 0.0), (1, 0, "cleared", 0.0), (4, None, "cleared", 0.0)]
    findings = [
        {"target": target, "target_name": HOSTILE_CLASSES[target], "cue": cue, "verdict": verdict}
        | {"severity": severity, "passes": 1, **common}
        for target, cue, verdict, severity in found
    ]
    corner, row_of_cells = [10, 11, 14, 15], [4, 5, 6, 7]
    held = [(0, 0, 0, corner), (0, 0, 3, [0]), (0, 0, 5, corner), (0, 0, 23, [0, 15])]
    held += [(2, 1, 3, row_of_cells), (2, 1, 21, row_of_cells), (1, 0, 16, corner)]
    carriers = [
        {"target": target, "cue": cue, "verdict": {f[:2]: f[2] for f in found}[target, cue]}
        | {"row": row, "likeness": 1 - row / 100, "cells": [i in cells for i in range(16)]}
        for target, cue, row, cells in held
    ]
    for place, rows, columns in (
        (audit.findings, findings, audit_schema.findings()),
        (audit.carriers, carriers, audit_schema.carriers((4, 4))),
    ):
        table = pa.Table.from_pylist(rows, schema=columns)
        place.replace(schema.encode_parquet(table, {"audit": audit.run.id}))
    ended = {"ended": "2026-11-27T00:00:00+00:00"}
    audit.run.write_summary({"state": "incomplete", "classes_missing": 1, **ended})
    return str(audit.run.root.name)


@pytest.fixture(scope="session")
def make_audited(
    tiny_model: ModelConfig,
    ray_address: str,
    run_job: Callable[[ExplainConfig], tuple[Exit, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], AuditedRun]:
    """Makes an AuditedRun whose maps are of a target such as top:3."""
    from jobs.config import MethodConfig
    from storage.runs import open_run

    def make(target: str) -> AuditedRun:
        folder = tmp_path_factory.mktemp("hostile")
        names = folder / "names.txt"
        names.write_text("".join(f"{name}\n" for name in HOSTILE_CLASSES))
        config = ExplainConfig(
            model=replace(tiny_model, class_names=str(names)),
            out=str(folder / "run"),
            input=InputConfig(manifest=str(_write_hostile_images(folder))),
            method=MethodConfig(target=target),
            execution=ExecutionConfig(address=ray_address, replicas=1, batch_size=8, max_failed=1),
        )
        code, told = run_job(config)
        assert code is Exit.COMPLETE, told
        audit = _write_audit(open_run(Location(config.out)))
        return AuditedRun(folder / "run", audit, HOSTILE_CLASSES, HOSTILE_IDS, 7)

    return make


@pytest.fixture(scope="session")
def audited(make_audited: Callable[[str], AuditedRun]) -> AuditedRun:
    """Maps of the predicted class; tests leave it as it is."""
    return make_audited("predicted")


@pytest.fixture(scope="session")
def audited_top(make_audited: Callable[[str], AuditedRun]) -> AuditedRun:
    """Three maps an image; tests leave it as it is."""
    return make_audited("top:3")
