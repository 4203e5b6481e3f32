"""Every block of docs/queries.md is run, on a disk and on S3, and the three answers agree."""

import ast
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.weed import BUCKET
from jobs.config import Exit, InputConfig
from storage import audit_schema, schema
from storage.locations import Location

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "queries.md").read_text()
ENGINES = ("duckdb", "pandas", "polars")
AUDIT = "audit/0123456789abcdef"
Rows = list[tuple[Any, ...]]


def blocks_of(section: str) -> dict[str, str]:
    return dict(re.findall(r"^```python ([\w-]+)\n(.*?)^```", section, re.M | re.S))


QUESTIONS = {
    int(number): blocks_of(section)
    for number, section in re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
SETUP = blocks_of(PAGE.partition("## 1.")[0])


def answer(block: str, names: dict[str, Any]) -> Any:
    """What the last expression of a block comes to."""
    *before, last = ast.parse(block).body
    assert isinstance(last, ast.Expr), block
    exec(compile(ast.Module(before, []), "queries.md", "exec"), names)
    return eval(compile(ast.Expression(last.value), "queries.md", "eval"), names)


def table(found: Any) -> tuple[list[str], Rows]:
    """Columns and plain rows of any engine's answer."""
    if isinstance(found, pl.DataFrame):
        return found.columns, [tuple(row) for row in found.rows()]
    if isinstance(found, pd.DataFrame):
        return list(found.columns), [tuple(row) for row in found.itertuples(index=False)]
    return found.columns, found.fetchall()


@pytest.fixture(scope="module")
def runs(small_config, image_folder, run_job, tmp_path_factory) -> tuple[Path, Path]:
    """Two checkpoints' runs of the labelled pictures and of some that are none, and an audit."""
    folder = tmp_path_factory.mktemp("queries")
    (folder / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    pictures = folder / "pictures"
    for path in image_folder.rglob("*.*g"):
        copy = pictures / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (pictures / "ant" / "torn.jpg").write_bytes((pictures / "ant" / "003.jpg").read_bytes()[:300])
    (pictures / "ant" / "text.jpg").write_bytes(b"no picture at all, whatever the name says")
    (pictures / "bee" / "text.png").write_bytes(b"nor this")
    execution = replace(small_config.execution, max_failed=0.5)
    for name, seed in (("run", 0), ("other", 1)):
        model = replace(
            small_config.model,
            checkpoint=f"random:{seed}",
            class_names=str(folder / "classes.txt"),
        )
        config = replace(
            small_config,
            model=model,
            input=InputConfig(images=str(pictures)),
            execution=execution,
            out=str(folder / name),
        )
        code, told = run_job(config)
        assert code is Exit.COMPLETE, told
    rows = pq.read_table(folder / "run" / "explanations").to_pylist()
    carriers = [
        {"target": row["label"], "cue": 0, "likeness": 1.0, "cells": [False] * 16}
        | {"row": row["row"], "verdict": "cleared" if row["label_name"] == "cat" else "shortcut"}
        for row in rows
        if row["row"] % 3 != 1
    ]
    made = pa.Table.from_pylist(carriers, schema=audit_schema.carriers((4, 4)))
    place = Location(str(folder / "run" / AUDIT)).child("carriers.parquet")
    place.create(schema.encode_parquet(made, {}))
    return folder / "run", folder / "other"


@pytest.fixture(scope="module")
def local_names(runs) -> dict[str, Any]:
    """What the block for local runs defines, with these runs in the place of the page's."""
    return defined("setup-local", {"saliency-demo-2": str(runs[1]), "saliency-demo": str(runs[0])})


@pytest.fixture(scope="module")
def s3_names(runs, s3_server) -> dict[str, Any]:
    """The same of the block for S3, with the runs there."""
    options = s3_server.options()
    for run, name in zip(runs, ("run", "run-2"), strict=True):
        for path in run.rglob("*.parquet"):
            url = f"s3://{BUCKET}/queries/{name}/{path.relative_to(run)}"
            Location(url, options).create(path.read_bytes())
    return defined(
        "setup-s3",
        {
            "s3://bucket": f"s3://{BUCKET}/queries",
            "https://s3.example.com": s3_server.endpoint,
            '"...", "..."': f'"{options["key"]}", "{options["secret"]}"',
        },
    )


def defined(setup: str, places: dict[str, str]) -> dict[str, Any]:
    code = SETUP[setup]
    changes = {"pentagon": "bee", "12": "4", "audit/3c217317fe052ea4": AUDIT}
    for old, new in {**changes, **places}.items():
        assert old in code, (setup, old)
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def names_of(request) -> Any:
    return request.getfixturevalue(request.param)


def test_there_are_ten_questions_in_three_languages():
    assert list(QUESTIONS) == list(range(1, 11))
    assert all(tuple(blocks) == ENGINES for blocks in QUESTIONS.values())
    assert PAGE.count("```python ") == 2 + 30


@pytest.mark.parametrize("names_of", ["local_names", "s3_names"], indirect=True, ids=["disk", "s3"])
@pytest.mark.parametrize("number", range(1, 11))
def test_the_three_answers_agree(number, names_of, runs):
    found = {
        engine: table(answer(block, dict(names_of))) for engine, block in QUESTIONS[number].items()
    }
    columns, rows = found["duckdb"]
    assert rows
    for engine in ("pandas", "polars"):
        assert found[engine][0] == columns, engine
        alike(found[engine][1], rows)
    COUNTED[number](rows, parts_of(runs[0]), parts_of(runs[1]), runs[0])


def alike(got: Rows, want: Rows) -> None:
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        for value, wanted in zip(mine, other, strict=True):
            if isinstance(wanted, float):
                assert value == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            else:
                assert value == wanted


def parts_of(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "explanations").to_pylist()


# The same again without a query language.


def is_wrong(row: dict[str, Any]) -> bool:
    both = row["label"], row["predicted"]
    return None not in both and both[0] != both[1]


def largest(mean: np.ndarray) -> list[tuple[int, int]]:
    return [divmod(int(cell), 4) for cell in np.argsort(-mean, kind="stable")[:5]]


def where_a_class_looks(rows, parts, _other, _run):
    maps = [row["saliency"] for row in parts if row["target_name"] == "bee"]
    mean = np.mean(np.array(maps, np.float64), 0)
    assert [row[:2] for row in rows] == largest(mean)
    assert rows[0][2] == pytest.approx(mean.max(), rel=1e-5)


def border(rows, parts, _other, _run):
    counts = Counter(row["target_name"] for row in parts if row["status"] == "ok")
    assert {name: images for name, images, _ in rows} == counts
    masses = [row["border_mass"] for row in parts if row["target_name"] == rows[0][0]]
    assert rows[0][2] == pytest.approx(np.mean(masses))


def sure_mistakes(rows, parts, _other, _run):
    wrong = sorted(filter(is_wrong, parts), key=lambda r: (-r["probability"], r["image_id"]))
    assert [row[0] for row in rows] == [row["image_id"] for row in wrong[:20]]


def confusions(rows, parts, _other, _run):
    counts = Counter((r["label_name"], r["predicted_name"]) for r in parts if is_wrong(r))
    assert {row[:2]: row[2] for row in rows} == counts


def unlike_their_class(rows, parts, _other, run):
    (row,) = [row for row in parts if row["image_id"] == rows[0][0]]
    heatmaps = pq.read_table(run / "class_heatmaps.parquet").to_pylist()
    (mean,) = [h["mean"] for h in heatmaps if (h["group"], h["target"]) == ("all", row["target"])]
    a, b = np.array(row["saliency"], float), np.array(mean, float)
    assert rows[0][2] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
    assert len(rows) == 10


def files_and_rightness(rows, parts, _other, _run):
    jpegs = [row for row in parts if row["format"] == "JPEG" and row["jpeg_quality"] is not None]
    assert sum(row[1] for row in rows) == len(jpegs)
    assert sum(row[2] for row in rows) == pytest.approx(1)
    right = sum(row["label"] == row["predicted"] for row in jpegs if row["predicted"] is not None)
    seen = sum(row["predicted"] is not None for row in jpegs)
    if len(rows) == 1:
        assert rows[0][5] == pytest.approx(right / seen)


def bad_images(rows, parts, _other, _run):
    counts = Counter(row["status"] for row in parts if row["status"] != "ok")
    assert {row[0]: row[1] for row in rows} == counts
    assert sum(counts.values()) == 3


def mistakes_look(rows, parts, _other, _run):
    mean = np.mean(np.array([r["saliency"] for r in parts if is_wrong(r)], np.float64), 0)
    assert [row[:2] for row in rows] == largest(mean)


def carriers(rows, parts, _other, _run):
    want: dict[tuple[str, bool], list[bool]] = {}
    for row in parts:
        if row["label_name"] in ("ant", "bee") and row["predicted"] is not None:
            key = row["label_name"], row["row"] % 3 != 1
            want.setdefault(key, []).append(row["label"] == row["predicted"])
    assert {row[:2]: row[2] for row in rows} == {key: len(of) for key, of in want.items()}
    assert {row[:2]: row[3] for row in rows} == {
        key: pytest.approx(np.mean(of)) for key, of in want.items()
    }
    assert {row[1] for row in rows} == {True, False}


def two_runs(rows, parts, other, _run):
    after = {row["image_id"]: row for row in other}
    assert sum(row[1] for row in rows) == 60
    for name, images, right_before, right_after, changed in rows:
        mine = [r for r in parts if r["label_name"] == name and r["predicted"] is not None]
        theirs = [after[r["image_id"]] for r in mine]
        assert images == len(mine)
        assert right_before == sum(r["label"] == r["predicted"] for r in mine)
        assert right_after == sum(r["label"] == r["predicted"] for r in theirs)
        pairs = zip(mine, theirs, strict=True)
        assert changed == sum(a["predicted"] != b["predicted"] for a, b in pairs)


COUNTED = {
    1: where_a_class_looks,
    2: border,
    3: sure_mistakes,
    4: confusions,
    5: unlike_their_class,
    6: files_and_rightness,
    7: bad_images,
    8: mistakes_look,
    9: carriers,
    10: two_runs,
}
