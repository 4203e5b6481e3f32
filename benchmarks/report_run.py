"""A finished, audited run of any number of classes, made without a model, to try reports on.

Its maps are coarse noise, its images the demo's drawings, its findings made up: what matters is how
many there are, and what the names of classes and images hold.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.export import synthetic
from explainer.classes import ClassNames
from jobs import findings, pictures
from jobs.aggregate import aggregate, class_heatmaps
from storage import schema, snapshots
from storage.audits import Audit, open_or_create_audit
from storage.locations import Location
from storage.runs import Run, open_or_create

GRID = (14, 14)
ROWS_OF_A_PART = 2048
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = {
    "input_size": [96, 96], "mean": HALF, "std": HALF, "crop_pct": 1.0, "crop_mode": "center",
    "interpolation": "bicubic", "exact": False,
}  # fmt: skip


def make_run(root: Location, names: Sequence[str], images: int, shortcuts: int) -> Run:
    """A run of `images` rows a class and an audit of it; the first `shortcuts` classes cheat.

    Every class has one drawing, which all of its rows name. The first row is `missing`.
    """
    rows = images * len(names)
    description = {
        "fingerprint_of": {
            "model": {"name": "vit_none", "weights": "0" * 64},
            "method": {"block": -2, "mask": "3x3", "target": "predicted"},
            "precision": "float32",
            "preprocessing": PREPROCESSING,
            "manifest": sha256(repr((rows, list(names))).encode()).hexdigest(),
        },
        "config": {"input": {"images": root.child("pictures").url}},
        "grid": list(GRID),
        "rows": rows,
        "targets_per_image": 1,
    }
    run = open_or_create(root, description)
    uris = [_draw(root, target) for target in range(len(names))]
    parts = range(-(-rows // ROWS_OF_A_PART))
    manifest = []
    for part in parts:
        start = part * ROWS_OF_A_PART
        table = _rows(run, range(start, min(start + ROWS_OF_A_PART, rows)), names, uris)
        run.publish(part, schema.encode_parquet(table, {"run": run.id}))
        columns = [table["image_id"], table["uri"], table["label_name"]]
        manifest.append(pa.table(columns, names=["image_id", "uri", "label"]))
    run.manifest.create(snapshots.encode(iter(manifest)))
    result = aggregate(run, list(parts), GRID)
    table = class_heatmaps(result, GRID)
    metadata = {"run": run.id, "parts_digest": result.digest}
    run.class_heatmaps.replace(schema.encode_parquet(table, metadata))
    run.write_summary(
        {
            "state": "complete",
            "rows": rows,
            "statuses": dict(result.statuses),
            "parts": len(parts),
            "parts_digest": result.digest,
            "classes_explained": len(names),
            "ended": "2026-01-01T00:00:00+00:00",
        }
    )
    _audit(run, result.digest, names, images, shortcuts)
    return run


def _draw(root: Location, target: int) -> str:
    """The picture of a class, which may carry its plant."""
    name = pictures.CLASS_NAMES[target % len(pictures.CLASS_NAMES)]
    place = root.child("pictures", f"{target:05d}.jpg")
    place.create(pictures.jpeg(pictures.draw(name, target)))
    return place.url


def _rows(run: Run, rows: range, names: Sequence[str], uris: Sequence[str]) -> pa.Table:
    """Rows in the order of their classes, four of five predicted as they are labelled."""
    table = synthetic(run, rows, len(names))
    images = run.description["rows"] // len(names)
    label = np.arange(rows.start, rows.stop) // images
    random = np.random.default_rng(rows.start)
    stranger = random.integers(len(names), size=len(rows))
    predicted = np.where(random.random(len(rows)) < 0.8, label, stranger)
    of_class = [names[index] for index in label]
    called = [names[index] for index in predicted]
    values: dict[str, Any] = {
        "image_id": [f"{name}/{row:07d}.jpg" for name, row in zip(of_class, rows, strict=True)],
        "uri": [uris[index] for index in label],
        "label": label,
        "label_name": of_class,
        "predicted": predicted,
        "predicted_name": called,
        "target": predicted,
        "target_name": called,
    }
    for name, column in values.items():
        field = table.schema.field(name)
        table = table.set_column(
            table.schema.get_field_index(name), field, pa.array(column).cast(field.type)
        )
    return _with_failure(table) if rows.start == 0 else table


def _with_failure(table: pa.Table) -> pa.Table:
    """The first row without a map."""
    kept = ("run", "row", "image_id", "uri", "label", "label_name", "status")
    row = {name: table[name][0].as_py() for name in kept} | {"status": "missing"}
    row["error"] = "no such object: <img src=x onerror=alert(1)>"
    first = pa.Table.from_pylist([row], schema=table.schema)
    return pa.concat_tables([first, table.slice(1)]).replace_schema_metadata(table.schema.metadata)


def _audit(run: Run, parts_digest: str, names: Sequence[str], images: int, shortcuts: int) -> Audit:
    audit = open_or_create_audit(run, {"run": run.id, "parts_digest": parts_digest})
    picture = pictures.jpeg(pictures.draw(pictures.WATERMARKED, 0, planted=True))
    for target in range(len(names)):
        rows = range(target * images, (target + 1) * images)
        cheats = target < shortcuts
        audit.publish(target, _evidence(target, rows, cheats=cheats))
        if cheats:
            audit.picture(target, 0).replace(picture)
    report = findings.judge(audit, ClassNames(tuple(names)), set(range(len(names))))
    findings.write(audit, report, GRID)
    audit.run.write_summary(
        {"state": "complete", "classes_missing": 0, "ended": "2026-01-02T00:00:00+00:00"}
    )
    return audit


def _evidence(target: int, rows: range, *, cheats: bool) -> Mapping[str, Any]:
    return {
        "target": target,
        "images": len(rows),
        "explained": len(rows),
        "candidates": 12,
        "passes": 500,
        "cues": [_cue(len(rows))] if cheats else [],
        "untestable": None,
        "rows": list(rows),
        "statistics": None,
    }


def _cue(images: int) -> dict[str, Any]:
    """What is a shortcut by every rule, on half of the images."""
    carriers = [
        {"image": image, "likeness": 0.9, "cells": [0, 1, 14, 15]} for image in range(images // 2)
    ]
    estimates = ("lift", "shift", "restored")
    return {
        "kind": "content",
        "origin": "saliency",
        "is_fixed": True,
        "area": 0.02,
        "threshold": 0.8,
        "gap": 0.1,
        "carriers": carriers,
        "carrier_share": _estimate(0.5),
        "accuracy_of_carriers": _estimate(0.95),
        "accuracy_of_others": _estimate(0.3),
        "paste": {
            "flips": 0.7,
            "controls": {"noise": 0.0, "other class": 0.05, "elsewhere": 0.1},
            **{name: _estimate(0.6) for name in estimates},
            "p_value": 1e-4,
            "donors": 40,
            "gained": None,
            "pooled": None,
        },
        "removal": {
            "without": 0.2,
            "elsewhere": 0.95,
            "drop": _estimate(0.75),
            "cost": _estimate(3.0),
            "images": 40,
        },
        "others": {
            "deficit": _estimate(0.0),
            "excess": _estimate(0.7),
            "excess_cost": _estimate(2.0),
            "right": 20,
        },
    }


def _estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "of": 40}
