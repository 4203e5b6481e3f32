"""What changed between two runs is told as it is: by hand, planted, hostile, and of models."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.aggregate import Aggregate, class_heatmaps, sum_part
from jobs.commands import CompareConfig
from jobs.compare import compare, compare_runs
from jobs.comparison import Change, Comparison
from jobs.config import ConfigurationError, Exit, ModelConfig
from jobs.signals import terminable
from jobs.terminal import Terminal
from storage import audit_schema, schema
from storage.audits import open_or_create_audit
from storage.locations import Location
from storage.runs import Run, open_or_create, open_run

GRID = (3, 3)
CLASSES = ("ant", "bee", "cat")
EVIL = "a\x1b]0;owned\x07\nb'\"; DROP TABLE pairs;--<script>\u202egpj[bold red]../\\,$1{x}"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Image:
    """An image of a run; without `predicted` it failed. `maps`: by class, in order of rank."""

    id: str
    label: str | None = None
    predicted: str | None = None
    maps: Sequence[tuple[str, np.ndarray]] = ()
    status: str = "missing"


def flat(cell: int, grid: tuple[int, int] = GRID) -> np.ndarray:
    """A map that lies in one cell."""
    cells = np.zeros(grid[0] * grid[1], np.float16)
    cells[cell] = 1
    return cells


def rows_of(images: Sequence[Image], names: Sequence[str], grid: tuple[int, int]) -> pa.Table:
    made = []
    for row, image in enumerate(images):
        label = names.index(image.label) if image.label in names else None
        common = {"run": "r", "row": row, "image_id": image.id, "label": label}
        common |= {"label_name": image.label, "status": image.status}
        if image.predicted is None:
            made.append(common)
            continue
        common |= {"status": "ok", "predicted": names.index(image.predicted)}
        common |= {"predicted_name": image.predicted, "probability": 0.5}
        for rank, (target, saliency) in enumerate(image.maps or [(image.predicted, flat(4, grid))]):
            values = {"target": names.index(target), "target_name": target, "target_rank": rank}
            values |= {"target_kind": "predicted", "saliency": saliency}
            peak = divmod(int(np.argmax(saliency)), grid[1])
            values |= {"peak_row": peak[0], "peak_col": peak[1]}
            values |= {"score_min": 0.0, "score_max": 1.0}
            made.append(common | values)
    return pa.Table.from_pylist(made, schema=schema.explanations(grid))


def make_run(root: Location, images: Sequence[Image], **given: Any) -> Run:
    """A finished run as `saliency explain` leaves it, of parts of `part` rows of the manifest.

    `given`: names, grid, part, weights, target, method (block), ...
    """
    names, grid = given.get("names", CLASSES), given.get("grid", GRID)
    identity = {
        "model": {"name": "vit", "weights": given.get("weights", "w" * 64)},
        "method": {"block": given.get("block", -2), "target": given.get("target", "predicted")},
        "manifest": sha256(repr([image.id for image in images]).encode()).hexdigest(),
    }
    identity["model"]["class_names"] = sha256(repr(names).encode()).hexdigest()
    run = open_or_create(root, {"fingerprint_of": identity, "grid": list(grid)})
    table, size, total, index = rows_of(images, names, grid), given.get("part", 7), Aggregate(), 0
    numbers = table["row"].to_numpy()
    for index, start in enumerate(range(0, len(images), size)):
        part = table.filter(pa.array((numbers >= start) & (numbers < start + size)))
        run.publish(index, schema.encode_parquet(part, {"run": run.id, "shard": str(index)}))
        total.add(sum_part(run.read_part(index), grid))
    run.class_heatmaps.create(schema.encode_parquet(class_heatmaps(total, grid), {}))
    statuses = Counter("ok" if image.predicted else image.status for image in images)
    summary = {"state": "complete", "rows": len(images), "statuses": statuses, "parts": index + 1}
    run.write_summary(
        summary | {"parts_digest": total.digest, "classes_explained": len(total.names)}
    )
    return run


def local(tmp_path: Path, name: str, images: Sequence[Image], **given: Any) -> Run:
    return make_run(Location(str(tmp_path / name)), images, **given)


def run_compare(**request: Any) -> tuple[Exit, str]:
    console = Terminal(file=io.StringIO(), width=160, highlight=False)
    code = compare(CompareConfig(**request), console)
    return code, console.file.getvalue()


def merged(a: pd.DataFrame, b: pd.DataFrame, how: Any) -> pd.DataFrame:
    """Rows of both runs, which image_id is the index of."""
    suffixes = ("_a", "_b")
    return a.merge(b, how, left_index=True, right_index=True, suffixes=suffixes, validate="1:1")


def noise(seed: int, count: int = 60, moved: Sequence[str] = ()) -> list[Image]:
    """Images of all classes, the same for all seeds, with maps that vary about the middle; those
    of `moved` classes lean to the first cell."""
    labels = np.random.default_rng(0).choice(CLASSES, count)
    random = np.random.default_rng(seed + 1)
    images = []
    for number, label in enumerate(labels.tolist()):
        right = number % 5 != 0
        said = label if right else CLASSES[(CLASSES.index(label) + 1) % 3]
        cells = random.random(9) * 0.3 + flat(4)
        cells = cells + flat(0) if said in moved else cells
        saliency = (cells / cells.max()).astype(np.float16)
        images.append(Image(f"i{number}", label, said, [(said, saliency)]))
    return images


def test_a_run_against_itself_has_no_change(location):
    run = make_run(location.child("run"), noise(0))
    found = compare_runs(run, run)
    assert (found.images.both, found.images.only_a, found.images.only_b) == (60, 0, 0)
    assert found.images.predictions_changed == 0
    assert found.settings == found.statuses == found.findings == ()
    assert {each.name for each in found.classes} == set(CLASSES)
    for each in found.classes:
        assert each.accuracy.right_a == each.accuracy.right_b
        assert each.accuracy.difference.value == 0
        assert each.accuracy.p_value == each.maps.drift.p_value == each.maps.q_value == 1
        assert each.maps.median_correlation == 1
        assert each.maps.drift.of_other_images < 1
        assert each.maps.drift.moved == each.heatmaps.drift.moved == 0
        assert each.heatmaps.drift.correlation == pytest.approx(1)
        assert each.heatmaps.drift.peak_a == each.heatmaps.drift.peak_b == (1, 1)
        assert not each.looks_elsewhere


A = [
    Image("1", "ant", "ant", [("ant", flat(0))]),
    Image("2", "ant", "ant", [("ant", flat(0))]),
    Image("3", "ant", "bee"),
    Image("4", "ant", "ant"),
    Image("5", "bee", "bee"),
    Image("6", "bee", "bee"),
    Image("7", "bee"),
    Image("8", None, "cat"),
    Image("9", "cat", "cat"),
    Image("only a", "ant", "ant"),
]
B = [
    Image("1", "ant", "ant", [("ant", flat(0))]),
    Image("2", "ant", "bee", [("bee", flat(0))]),
    Image("3", "ant", "ant"),
    Image("4", "ant", "cat"),
    Image("5", "bee", "bee"),
    Image("6", "bee", status="truncated"),
    Image("7", "bee", status="denied"),
    Image("8", None, "bee"),
    Image("9", "bee", "cat"),
    Image("only b", "cat", "ant"),
    Image("only b, too", "cat", "cat"),
]


def check_by_hand(found: Comparison) -> None:
    images = found.images
    assert (images.both, images.only_a, images.only_b) == (9, 1, 2)
    assert (images.labels_changed, images.predicted_in_both) == (1, 7)
    assert images.predictions_changed == 4
    assert [asdict(change) for change in found.statuses] == [
        {"before": "missing", "after": "denied", "images": 1},
        {"before": "ok", "after": "truncated", "images": 1},
    ]
    of = {each.name: each.accuracy for each in found.classes}
    ant, bee = of["ant"], of["bee"]
    assert (ant.images, ant.right_a, ant.right_b) == (4, 3, 2)
    assert (ant.became_right, ant.became_wrong) == (1, 2)
    assert ant.difference.value == -0.25
    # Of six pairs 2 gained and 3 lost: Bonett and Price's centre and half, by hand.
    half = 1.959964 * ((5 / 6 - 1 / 36) / 6) ** 0.5
    assert ant.difference.low == pytest.approx(max(-1, -1 / 6 - half))
    assert ant.difference.high == pytest.approx(-1 / 6 + half)
    assert ant.p_value == 1
    assert (bee.images, bee.right_a, bee.right_b) == (1, 1, 1)
    assert of["cat"] is None  # its one image has another label in B
    assert found.accuracy.images == 5


def test_small_runs_are_compared_as_by_hand(tmp_path):
    found = compare_runs(local(tmp_path, "a", A), local(tmp_path, "b", B, weights="v"))
    check_by_hand(found)
    assert [each.name for each in found.settings] == ["manifest", "model.weights"]
    assert [line for line in found.remarks if "label" in line] == [
        "1 images have another label: they count for no accuracy"
    ]


def test_rows_are_joined_by_image_id_in_whatever_order_they_come(tmp_path):
    a = local(tmp_path, "a", A)
    found = compare_runs(a, local(tmp_path, "b", list(reversed(B)), part=2))
    check_by_hand(found)
    many = noise(0, 200), noise(1, 200, moved=["bee"])
    mixed = [many[1][i] for i in np.random.default_rng(0).permutation(200)]
    one = local(tmp_path, "one", many[0])
    other = compare_runs(one, local(tmp_path, "mixed", mixed, part=13))
    same = compare_runs(one, local(tmp_path, "same", many[1], part=11))
    assert other.classes == same.classes
    assert other.images == same.images


def test_images_of_one_list_whose_ids_differ_are_not_taken_for_each_other(tmp_path):
    a = local(tmp_path, "a", A)
    renamed = [replace(image, id=f"other {image.id}") for image in A[:-1]]
    b = local(tmp_path, "b", [*renamed, A[-1]])
    identity = {**b.description["fingerprint_of"]}
    identity["manifest"] = a.description["fingerprint_of"]["manifest"]
    found = compare_runs(a, Run(b.root, {**b.description, "fingerprint_of": identity}))
    assert (found.images.both, found.images.only_a, found.images.only_b) == (1, 9, 9)


def test_a_planted_move_of_the_maps_is_told_from_noise(tmp_path):
    a = local(tmp_path, "a", noise(0, 120))
    found = compare_runs(a, local(tmp_path, "b", noise(1, 120, moved=["bee"])))
    said = {each.name: each for each in found.classes}
    assert said["bee"].looks_elsewhere
    assert said["bee"].maps.is_significant
    assert said["bee"].maps.drift.moved > 4 * said["bee"].maps.drift.by_chance
    for name in ("ant", "cat"):  # every map is another one, and yet none moved on average
        assert not said[name].looks_elsewhere
        assert not said[name].maps.is_significant
        assert said[name].maps.drift.moved < 2 * said[name].maps.drift.by_chance
        assert said[name].maps.median_correlation < 0.999
    code, told = run_compare(run_a=str(tmp_path / "a"), run_b=str(tmp_path / "b"))
    assert code is Exit.COMPLETE
    assert "1 classes look elsewhere and are as often right as before: bee" in told
    lines = told.partition(" by chance ")[2].splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["bee", "cat", "ant"]


def test_maps_are_compared_class_by_class_whatever_their_rank(tmp_path):
    random = np.random.default_rng(0)
    maps = {name: [random.random(9).astype(np.float16) for _ in range(2)] for name in CLASSES}
    a = Image("1", "ant", "ant", [("ant", maps["ant"][0]), ("bee", maps["bee"][0])])
    b = Image("1", "ant", "bee", [("bee", maps["bee"][1]), ("ant", maps["ant"][1])])
    without = Image("2", "ant", "ant", [("ant", maps["ant"][0]), ("bee", maps["bee"][0])])
    other = Image("2", "ant", "bee", [("bee", maps["bee"][1]), ("cat", maps["cat"][1])])
    found = compare_runs(
        local(tmp_path, "a", [a, without], target="top:2"),
        local(tmp_path, "b", [b, other], target="top:2", weights="v"),
    )
    (ant,) = [each for each in found.classes if each.name == "ant"]
    want = np.corrcoef(*(each.astype(float) for each in maps["ant"]))[0, 1]
    assert ant.maps.images == 1
    assert ant.maps.median_correlation == pytest.approx(want, abs=0.0005)
    assert found.images.predictions_changed == 2


def test_classes_of_other_lists_are_the_same_where_their_names_are(tmp_path):
    a = local(tmp_path, "a", A)
    b = local(tmp_path, "b", B, names=("cat", "dog", "bee", "ant"))
    found = compare_runs(a, b)
    check_by_hand(found)
    assert "the class lists differ: classes are the same where their names are" in found.remarks
    heatmaps = {each.name: each.heatmaps for each in found.classes}
    assert heatmaps["ant"].images_a == 4
    assert heatmaps["ant"].images_b == 3


def test_a_name_of_two_classes_is_compared_with_neither(tmp_path):
    a = local(tmp_path, "a", A)
    b = local(tmp_path, "b", B, names=("cat", "dog", "bee", "ant"))
    table = b.read_class_heatmaps().to_pylist()
    table += [row | {"target": 1} for row in table if row["target_name"] == "ant"]
    twice = pa.Table.from_pylist(table, schema=schema.class_heatmaps(GRID))
    b.class_heatmaps.replace(schema.encode_parquet(twice, {}))
    found = compare_runs(a, b)
    assert any("two classes of one run have the name ant: no such" in r for r in found.remarks)
    assert all(each.heatmaps is None for each in found.classes if each.name == "ant")
    assert all(each.maps is None for each in found.classes if each.name == "ant")
    assert next(each for each in found.classes if each.name == "bee").heatmaps is not None


def test_runs_of_other_grids_and_conventions_are_compared_as_far_as_they_can_be(tmp_path):
    a = local(tmp_path, "a", [replace(image, maps=()) for image in A])
    wide = [replace(image, maps=()) for image in B]
    found = compare_runs(a, local(tmp_path, "b", wide, grid=(4, 4), block=-1, target="label"))
    check_by_hand(found)
    assert all(each.maps is None and each.heatmaps is None for each in found.classes)
    told = "\n".join(found.remarks)
    assert "maps have 3 x 3 and 4 x 4 cells: no map and no class heatmap is compared" in told
    assert "maps are made otherwise, which moves them too: method.block (-2 and -1)" in told
    assert "run A explains the target predicted, run B label: class heatmaps are means" in told


def test_maps_without_shape_and_classes_without_rows_have_no_numbers(tmp_path):
    zeros = np.zeros(9, np.float16)
    images = [Image(str(i), "ant", "ant", [("ant", zeros)]) for i in range(3)]
    found = compare_runs(local(tmp_path, "a", images), local(tmp_path, "b", [*images, A[4]]))
    ant, bee = sorted(found.classes, key=lambda each: each.name)
    assert ant.maps.images == 3
    assert ant.maps.median_correlation is None
    assert ant.maps.drift.of_other_images is None
    assert ant.maps.drift.moved == 0
    assert (bee.accuracy, bee.maps, bee.heatmaps) == (None, None, None)
    json.dumps(asdict(found), allow_nan=False)


def test_unlabelled_and_wholly_failed_runs_say_what_there_is(tmp_path):
    bare = [replace(image, label=None) for image in A]
    failed = [Image(image.id) for image in A]
    a, b = local(tmp_path, "a", bare), local(tmp_path, "b", failed, part=3)
    found = compare_runs(a, b)
    assert found.accuracy.images == 0
    assert (found.accuracy.difference.low, found.accuracy.difference.high) == (-1, 1)
    assert [(change.after, change.images) for change in found.statuses] == [("missing", 9)]
    assert {each.name for each in found.classes} == set(CLASSES)
    code, told = run_compare(run_a=str(tmp_path / "a"), run_b=str(tmp_path / "b"))
    assert code is Exit.COMPLETE
    assert "9 ok -> missing" in told
    assert "accuracy" not in told


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    a = local(tmp_path, "a", A)
    a.write_summary({"state": "incomplete"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ConfigurationError) as error:
        run_compare(
            run_a=str(tmp_path / "a"),
            run_b=str(tmp_path / "nowhere"),
            out=str(tmp_path / "out"),
        )
    lines = error.value.problems
    assert [line.partition(":")[0] for line in lines] == ["RUN_A", "RUN_B", "--out"]
    assert "is not finished (state: incomplete); the `saliency explain` that made it" in lines[0]
    assert "holds no run (no run.json)" in lines[1]
    assert "is not empty: it holds mine.txt; name an empty --out" in lines[2]


def test_runs_that_share_no_image_or_have_changed_are_refused(tmp_path):
    a = local(tmp_path, "a", A)
    strangers = local(tmp_path, "b", [replace(image, id=f"x{image.id}") for image in A])
    with pytest.raises(ConfigurationError, match=r"have no image_id in common.*--id-column"):
        compare_runs(a, strangers)
    (tmp_path / "a" / "explanations" / "part-00000001.parquet").unlink()
    with pytest.raises(ConfigurationError, match="came, went or changed since the run was"):
        compare_runs(a, local(tmp_path, "c", B))


def test_names_from_data_are_text_on_the_terminal_and_whole_in_files(tmp_path):
    names = (EVIL, "bee", "[/bold]")
    a = [Image(f"{EVIL}{i}", EVIL, EVIL, [(EVIL, flat(i % 9))]) for i in range(6)]
    b = [Image(f"{EVIL}{i}", EVIL, "[/bold]", [(EVIL, flat(0))]) for i in range(6)]
    other = (*names, "another list")
    for given in ({"names": names}, {"names": other}):
        folder = tmp_path / str(len(given["names"]))
        local(folder, "a", a, names=names)
        local(folder, "b", b, **given)
        request = {"run_a": str(folder / "a"), "run_b": str(folder / "b")}
        code, told = run_compare(**request, out=str(folder / "out"))
        assert code is Exit.COMPLETE
        assert not OBEYED.search(told)
        assert "[bold red]" in told.replace("\n", "")
        classes = pq.read_table(folder / "out" / "classes.parquet").to_pylist()
        assert [row["class_name"] for row in classes if row["images"]] == [EVIL]
        joined = pq.read_table(folder / "out" / "rows").to_pylist()
        assert {row["image_id"] for row in joined} == {image.id for image in a}
        assert {row["predicted_name_b"] for row in joined} == {"[/bold]"}
        _, text = run_compare(**request, json=True)
        assert json.loads(text)["classes"][0]["name"] == EVIL
        assert not OBEYED.search(text)


def test_the_joined_rows_are_a_merge_of_both_runs(location, tmp_path):
    make_run(location.child("a"), A)
    make_run(location.child("b"), B, part=2)
    options = tmp_path / "options.json"
    options.write_text(json.dumps(location.options))
    storages = {"input_storage": str(options), "output_storage": str(options)}
    urls = {name: location.child(side).url for name, side in (("run_a", "a"), ("run_b", "b"))}
    out = location.child("out")
    code, told = run_compare(**urls, **storages, out=out.url)
    assert code is Exit.COMPLETE
    assert f"rows, classes and findings: {out.shown}" in told.replace("\n", "")
    data = out.child("rows", "rows-00000.parquet").read()
    got = pd.read_parquet(io.BytesIO(data)).set_index("image_id")
    sides = [rows_of(images, CLASSES, GRID).to_pandas().set_index("image_id") for images in (A, B)]
    want = merged(*sides, how="outer")
    assert list(got.index[:10]) == [image.id for image in A]
    for column in ("row", "label_name", "status", "predicted_name", "target_name", "peak_col"):
        for side in ("a", "b"):
            name = f"{column}_{side}"
            pd.testing.assert_series_equal(
                got[name].sort_index(), want[name], check_dtype=False, check_names=False
            )
    assert got.loc["2", ["is_right_a", "is_right_b"]].tolist() == [True, False]
    assert got.loc["6", "is_right_b"] is None
    assert got.loc["1", "map_correlation"] == pytest.approx(1)
    assert np.isnan(got.loc["2", "map_correlation"])  # explained as another class
    stored = json.loads(out.child("comparison.json").read())
    assert stored["images"]["both"] == 9
    with pytest.raises(ConfigurationError, match=r"--out: .* is not empty: it holds"):
        run_compare(**urls, **storages, out=out.url)


def test_each_run_may_lie_in_a_store_of_its_own(s3, tmp_path):
    local(tmp_path, "a", A)
    make_run(s3.location("b"), B)
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3.options))
    urls = {"run_a": str(tmp_path / "a"), "run_b": s3.url("b")}
    code, told = run_compare(**urls, input_storage_b=str(options))
    assert code is Exit.COMPLETE
    assert "9 in both, 1 only in A, 2 only in B" in told


def test_twenty_lines_are_told_and_how_many_more(tmp_path):
    names = tuple(f"class {i}" for i in range(30))
    a = [Image(str(i), names[i % 30], names[i % 30]) for i in range(90)]
    b = [
        replace(image, predicted=names[0] if i < 88 else image.predicted)
        for i, image in enumerate(a)
    ]
    local(tmp_path, "a", a, names=names)
    local(tmp_path, "b", b, names=names, weights="v")
    _, told = run_compare(run_a=str(tmp_path / "a"), run_b=str(tmp_path / "b"))
    assert "and 9 more classes with flips" in told
    table = told.partition("to wrong")[2].partition("and 9 more")[0]
    assert len(re.findall(r"^ class \d", table, re.M)) == 20
    assert "class 29" not in table  # it lost least: two of three


# Findings: by class the verdicts on its cues, and which images carry each.


def audit_of(run: Run, cues: Sequence[tuple[str, str, str, Sequence[int]]], **given: Any) -> None:
    """A complete audit; a cue is (class, verdict, kind, rows). Without rows it is the class's."""
    digest = run.read_summary()["parts_digest"]
    audit = open_or_create_audit(run, {"parts_digest": digest, "seed": given.get("seed", 0)})
    names = given.get("names", CLASSES)
    looked = given.get("looked", range(200))
    findings, carriers, seen = [], [], Counter()
    for name, verdict, kind, rows in cues:
        target = names.index(name)
        cue = seen[name] if rows else None
        seen[name] += 1
        findings.append(
            {"target": target, "target_name": name, "cue": cue, "verdict": verdict}
            | {"reason": "because", "severity": 0.5, "images": 9, "explained": 9}
            | {"candidates": 1, "passes": 1, "apart": 0.5, "kind": kind if rows else None}
            | {"lift": 0.5, "kept_without": 0.25, "accuracy_of_carriers": 0.8}
        )
        carriers += [
            {"target": target, "cue": cue, "verdict": verdict, "row": row, "likeness": 1.0}
            | {"cells": [False] * 9}
            for row in rows
        ]
        if name not in {cue[0] for cue in cues[: len(findings) - 1]}:
            audit.publish(target, {"rows": list(looked)})
    for place, made, columns in (
        (audit.findings, findings, audit_schema.findings()),
        (audit.carriers, carriers, audit_schema.carriers(GRID)),
    ):
        place.replace(schema.encode_parquet(pa.Table.from_pylist(made, schema=columns), {}))
    state = given.get("state", "complete")
    audit.run.write_summary({"state": state, "ended": given.get("ended", "2026-01-01")})


CUT = "shortcut"


def found_in(tmp_path: Path, a: Any, b: Any) -> dict[tuple, Any]:
    """What became of the findings, by class, change, before and after."""
    images = noise(0, 200)
    runs = [local(tmp_path, name, images, weights=name) for name in "ab"]
    for run, cues in zip(runs, (a, b), strict=True):
        audit_of(run, cues)
    found = compare_runs(*runs)
    told = {
        (f.class_name, f.change, f.before and f.before.verdict, f.after and f.after.verdict): f
        for f in found.findings
    }
    assert len(told) == len(found.findings)
    return told


def test_cues_are_the_same_where_their_carriers_are(tmp_path):
    context = "context"
    told = found_in(
        tmp_path,
        a=[
            ("ant", CUT, "content", range(20)),
            ("ant", context, "background", range(100)),
            ("bee", CUT, "content", range(30)),
            ("cat", CUT, "content", range(40)),
            ("cat", "cleared", "content", range(100, 140)),
        ],
        b=[
            ("ant", CUT, "content", range(5, 25)),  # 15 of 25 in common
            ("ant", CUT, "background", range(100)),
            ("bee", CUT, "content", range(50, 80)),  # another cue
            ("cat", "cleared", "content", range(39)),
            ("cat", "cleared", "content", range(100, 140)),
        ],
    )
    assert list(told) == [
        ("bee", Change.NEW, None, CUT),
        ("ant", Change.CHANGED, context, CUT),
        ("cat", Change.CHANGED, CUT, "cleared"),
        ("ant", Change.KEPT, CUT, CUT),
        ("bee", Change.GONE, CUT, None),
    ]
    assert told["ant", Change.KEPT, CUT, CUT].overlap == 15 / 25
    gone = told["bee", Change.GONE, CUT, None]
    assert (gone.before.lift, gone.before.right_without) == (0.5, 0.2)
    assert gone.reason == "the audit of B has no such cue; its verdict on the class: shortcut"
    rows = [image for image in noise(0, 200)[:30] if image.label == image.predicted]
    assert (gone.carriers.images, gone.carriers.right_a) == (30, len(rows))


def test_cues_of_another_kind_or_class_are_others(tmp_path):
    told = found_in(
        tmp_path,
        a=[("ant", CUT, "content", range(20)), ("bee", "cleared", "", ())],
        b=[
            ("ant", CUT, "colours", range(20)),
            ("bee", CUT, "content", range(20)),
        ],
    )
    assert set(told) == {
        ("ant", Change.GONE, CUT, None),
        ("ant", Change.NEW, None, CUT),
        ("bee", Change.NEW, None, CUT),
    }


def test_what_an_audit_has_not_tested_is_unknown_and_not_gone(tmp_path):
    told = found_in(
        tmp_path,
        a=[
            ("ant", CUT, "content", range(20)),
            ("bee", CUT, "content", range(20)),
            ("cat", CUT, "content", range(20)),
        ],
        b=[("ant", "not testable", "", ()), ("cat", "cleared", "", ())],
    )
    reasons = {f.class_name: (f.change, f.reason) for f in told.values()}
    assert reasons == {
        "ant": (Change.UNKNOWN, "the audit of B could not test this class"),
        "bee": (Change.UNKNOWN, "the audit of B has not examined this class"),
        "cat": (
            Change.GONE,
            "the audit of B has no such cue; its verdict on the class: cleared",
        ),
    }


def test_audits_that_looked_at_other_images_settle_nothing(tmp_path):
    images = noise(0, 200)
    a, b = (local(tmp_path, name, images, weights=name) for name in "ab")
    audit_of(a, [("ant", CUT, "content", range(20))], looked=range(100))
    audit_of(b, [("ant", CUT, "content", range(100, 120))], looked=range(100, 200))
    found = compare_runs(a, b)
    assert [(f.change, f.reason) for f in found.findings] == [
        (Change.UNKNOWN, "the two audits looked at no image of this class in common")
    ] * 2
    assert len(found.new_shortcuts) == 1


@pytest.mark.parametrize(
    ("b", "code"),
    [
        ([("ant", CUT, "content", range(20)), ("bee", "cleared", "", ())], Exit.COMPLETE),
        ([("ant", "cleared", "", ()), ("bee", "cleared", "", ())], Exit.COMPLETE),
        ([("ant", CUT, "content", range(90, 120)), ("bee", "cleared", "", ())], Exit.FINDINGS),
        ([("ant", "cleared", "", ()), ("bee", CUT, "content", range(20))], Exit.FINDINGS),
        ([("ant", "cleared", "", ())], Exit.INCOMPLETE),
        ([("ant", "cleared", "", ()), ("bee", "not testable", "", ())], Exit.INCOMPLETE),
    ],
)
def test_a_release_pipeline_fails_on_new_shortcuts_alone(tmp_path, b, code):
    images = noise(0, 200)
    a_run, b_run = (local(tmp_path, name, images, weights=name) for name in "ab")
    audit_of(a_run, [("ant", CUT, "content", range(20)), ("bee", "context", "content", range(9))])
    audit_of(b_run, b)
    urls = {"run_a": str(tmp_path / "a"), "run_b": str(tmp_path / "b")}
    assert run_compare(**urls)[0] is Exit.COMPLETE
    got, told = run_compare(**urls, fail_on="new-shortcut")
    assert got is code
    assert ("has no verdict on bee (1 classes" in told.replace("\n", " ")) == (
        code is Exit.INCOMPLETE
    )


def test_only_finished_audits_of_the_runs_own_rows_count_and_of_these_the_last(tmp_path):
    images = noise(0, 60)
    a, b = (local(tmp_path, name, images, weights=name) for name in "ab")
    urls = {"run_a": str(tmp_path / "a"), "run_b": str(tmp_path / "b")}
    cues = [("ant", CUT, "content", range(20))]
    audit_of(a, cues)
    audit_of(b, cues, state="incomplete")
    (tmp_path / "b" / "audit" / "mine").mkdir()
    (tmp_path / "b" / "audit" / "notes.txt").write_text("no audit")
    with pytest.raises(ConfigurationError) as error:
        run_compare(**urls, fail_on="new-shortcut")
    (line,) = error.value.problems
    assert line.startswith(f"--fail-on: {tmp_path / 'b'} has no finished audit of its rows; run `")
    assert any("run B has no finished audit" in remark for remark in compare_runs(a, b).remarks)
    audit_of(b, [("ant", "cleared", "", ())], seed=1, ended="2026-01-02")
    audit_of(b, cues, seed=2, ended="2026-01-01")
    (finding,) = compare_runs(a, b).findings
    assert finding.change is Change.GONE


# Two checkpoints.


@pytest.fixture(scope="module")
def checkpoints(small_config, run_job, tmp_path_factory) -> tuple[str, str]:
    """Two runs of one architecture with other random weights, on labelled images."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    for seed in (0, 1):
        model: ModelConfig = replace(
            small_config.model,
            checkpoint=f"random:{seed}",
            class_names=str(folder / "classes.txt"),
        )
        config = replace(small_config, model=model, out=str(folder / str(seed)))
        code, told = run_job(config)
        assert code is Exit.COMPLETE, told
    return str(folder / "0"), str(folder / "1")


def test_two_checkpoints_are_compared_as_pandas_compares_their_rows(checkpoints):
    found = compare_runs(*(open_run(Location(url)) for url in checkpoints))
    a, b = (
        pq.read_table(Path(url) / "explanations").to_pandas().set_index("image_id")
        for url in checkpoints
    )
    both = merged(a, b, how="inner")
    assert len(both) == found.images.both == 60
    changed = int((both.predicted_a != both.predicted_b).sum())
    assert found.images.predictions_changed == changed
    for each in found.classes:
        mine = both[both.label_name_a == each.name]
        assert (each.accuracy.images if each.accuracy else 0) == len(mine)
        if each.accuracy is not None:
            assert each.accuracy.right_a == (mine.predicted_name_a == each.name).sum()
            assert each.accuracy.right_b == (mine.predicted_name_b == each.name).sum()
        same = both[(both.target_name_a == each.name) & (both.target_name_b == each.name)]
        assert (each.maps.images if each.maps else 0) == len(same)
        if each.maps is not None:
            values = [
                np.corrcoef(np.float64(x), np.float64(y))[0, 1]
                for x, y in zip(same.saliency_a, same.saliency_b, strict=True)
            ]
            assert each.maps.median_correlation == pytest.approx(np.median(values), abs=0.0006)
        elif each.heatmaps is not None:
            assert len(a[a.target_name == each.name]) == each.heatmaps.images_a
    assert sum(each.maps.images for each in found.classes if each.maps) == 60 - changed


def test_the_command_prints_tables_or_json_and_loads_neither_torch_nor_ray(checkpoints):
    command = [sys.executable, "-X", "importtime", "-m", "jobs.cli", "compare", *checkpoints]
    answer = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "duckdb" in imported
    assert not imported & {"torch", "ray", "timm"}
    assert json.loads(answer.stdout)["images"]["both"] == 60
    answer = subprocess.run(
        [*command[:1], *command[3:]], capture_output=True, text=True, check=True
    )
    assert "60 in both, 0 only in A, 0 only in B" in answer.stdout
    assert not answer.stderr
    refused = subprocess.run(
        [*command[:1], *command[3:], "--fail-on", "new-shortcut"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stdout.count("has no finished audit") == 2


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_that_meets_duckdb_at_work_ends_the_comparison_in_order(number, ends):
    def work(sql: str) -> None:
        with terminable():
            duckdb.sql(sql).fetchall()
            time.sleep(60)  # should the query be done before the signal comes

    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(ends) as ended:
        work("SELECT count(*) FROM range(1_000_000_000) AS r(i) WHERE i % 7 = 3")
    timer.join()
    if ends is SystemExit:
        assert ended.value.code is Exit.TERMINATED
    with pytest.raises(duckdb.Error, match="nonsense"):
        work("SELECT nonsense")


def test_no_room_for_the_join_is_said_and_nothing_is_left(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        images = noise(seed, 3000)
        local(tmp_path, name, images if name == "a" else images[::-1], part=500)
    (tmp_path / "scratch").mkdir()
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "sys.argv = ['saliency', *sys.argv[1:]];"
        "from jobs.cli import main; main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", limited, "compare", str(tmp_path / "a"), str(tmp_path / "b")],
        capture_output=True, text=True, check=False, env={"TMPDIR": str(tmp_path / "scratch")},
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert answer.returncode == 1, answer.stderr
    assert "set TMPDIR to a folder with more room" in answer.stdout
    assert not list((tmp_path / "scratch").iterdir())
