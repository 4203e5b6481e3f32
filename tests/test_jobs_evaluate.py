"""Whole evaluations of small runs: every number is there, they resume, they refuse."""

import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from explainer import decode
from explainer.evaluation import METRICS, STAGES, Judge
from explainer.methods import parse
from explainer.resampling import scores
from explainer.sanity import randomised
from jobs.cluster import Resources
from jobs.config import ConfigurationError, EvaluateConfig, Exit
from jobs.evaluate import by_method, evaluate, evaluate_job, read_plan
from jobs.evaluate_plan import draw
from jobs.evaluate_worker import EvaluateWorker, covered
from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.replica_config import ReplicaConfig
from jobs.subject import read_subject
from storage.evaluations import Evaluation
from storage.lease import Lease, RunHeld
from storage.locations import Location, StorageUnavailable
from storage.runs import open_run

METHODS = "reciprocam,rollout,libragrad,random"
# The tiny model takes absolute positions, and no boxes are given unless a test does.
WITHOUT_BOXES = set(METRICS) - {"pointing", "mass", "top_tenth"}


def run_evaluation(config: EvaluateConfig) -> tuple[Exit, str]:
    console = Console(file=io.StringIO(), width=200)
    code = evaluate(config, console)
    return code, console.file.getvalue()


def folder_of(config: EvaluateConfig) -> Path:
    """Of the evaluations of its run the one with its seed."""
    folders = (Path(config.run) / "evaluate").iterdir()
    seeds = {
        json.loads((folder / "run.json").read_text())["fingerprint_of"]["seed"]: folder
        for folder in folders
    }
    return seeds[config.seed]


def measured(config: EvaluateConfig) -> list[dict[str, Any]]:
    """All numbers but those of the clock."""
    table = pq.read_table(folder_of(config) / "evaluation.parquet")
    return [row for row in table.to_pylist() if row["metric"] != "cost"]


@pytest.fixture(scope="module")
def config(finished: Any) -> EvaluateConfig:
    """Twelve images in three shards."""
    return EvaluateConfig(
        run=finished.out,
        methods=METHODS,
        sample=12,
        steps=4,
        execution=ReplicaConfig(address=finished.execution.address, replicas=1),
    )


def test_every_image_has_each_number_of_each_method_once(config):
    code, told = run_evaluation(config)
    assert code is Exit.COMPLETE, told
    assert "4 methods on 12 images, of which 12 are to be judged" in told
    rows = pq.read_table(folder_of(config) / "evaluation.parquet").to_pylist()
    keys = [(row["row"], row["method"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys) == 12 * 4 * len(WITHOUT_BOXES)
    assert {metric for _, _, metric in keys} == WITHOUT_BOXES
    explained = {
        row["row"]: row for row in pq.read_table(Path(config.run) / "explanations").to_pylist()
    }
    assert all(row["target"] == explained[row["row"]]["predicted"] for row in rows)
    assert all(row["image_id"] == explained[row["row"]]["image_id"] for row in rows)
    assert (folder_of(config) / "methods.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder_of(config) / "summary.json").read_text())
    assert (summary["state"], summary["images_missing"]) == ("complete", 0)


def test_an_images_numbers_are_those_that_the_library_gives(config):
    run_evaluation(config)
    subject = read_subject(config, "an evaluation")
    model = subject.prepared.model
    rows = [row for row in measured(config) if row["method"] == "libragrad"]
    known = {
        row["row"]: row for row in pq.read_table(Path(config.run) / "explanations").to_pylist()
    }
    for chosen in sorted({row["row"] for row in rows})[:3]:
        data = Path(known[chosen]["uri"]).read_bytes()
        judge = Judge(
            model,
            torch.from_numpy(decode(data, model.preprocessing).crop)[None],
            torch.tensor([known[chosen]["predicted"]]),
            config.steps,
            {stage: randomised(model, stage, config.seed) for stage in STAGES},
        )
        want = judge.metrics(parse("libragrad"))
        got = {row["metric"]: row["value"] for row in rows if row["row"] == chosen}
        assert set(got) == set(want) - {"cost"}
        assert all(got[name] == pytest.approx(want[name].item(), abs=2e-5) for name in got)


def test_what_is_told_of_methods_follows_from_the_numbers(config):
    _, told = run_evaluation(config)
    numbers = pq.read_table(folder_of(config) / "evaluation.parquet")
    table = pq.read_table(folder_of(config) / "methods.parquet").to_pylist()
    of_methods = {(row["method"], row["metric"]): row for row in table}
    of_images = by_method([numbers])
    batches = np.arange(12) // 4
    for score in scores(of_images.numbers, METHODS.split(","), batches):
        row = of_methods.pop((score.method, score.metric))
        assert (row["value"], row["low"], row["high"]) == (
            score.estimate.value,
            score.estimate.low,
            score.estimate.high,
        )
        assert row["low"] <= row["value"] <= row["high"]
        assert row["reference"] == "reciprocam"
    assert not of_methods
    drops = [
        row["value"]
        for row in numbers.to_pylist()
        if (row["method"], row["metric"]) == ("rollout", "drop")
    ]
    rollout = next(row for row in table if (row["method"], row["metric"]) == ("rollout", "drop"))
    first = next(row for row in table if (row["method"], row["metric"]) == ("reciprocam", "drop"))
    assert rollout["value"] == pytest.approx(np.mean(drops))
    assert rollout["difference"] == pytest.approx(rollout["value"] - first["value"])
    assert (first["difference_low"], first["difference_high"]) == (0, 0)
    assert f"{rollout['value']:.2f} ±" in told


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_which_is_resumed_to_the_same_numbers(config, done_when):
    run_evaluation(config)
    whole = measured(config)
    parts = Location(str(folder_of(config))).child("parts")
    for name in parts.names():
        parts.child(name).delete()

    with done_when(lambda: bool(parts.names()), lambda: os.kill(os.getpid(), signal.SIGTERM)):
        code, told = run_evaluation(config)
    assert code is Exit.TERMINATED, told
    assert "images are not yet judged; the same command does the rest" in told
    assert json.loads((folder_of(config) / "summary.json").read_text())["state"] == "incomplete"
    missing = 12 - 4 * len(parts.names())
    assert 0 < missing < 12
    code, told = run_evaluation(config)
    assert code is Exit.COMPLETE
    assert f"12 images, of which {missing} are to be judged" in told
    assert measured(config) == whole
    _, told = run_evaluation(config)
    assert "12 images, of which 0 are to be judged" in told


def test_boxes_tell_where_what_matters_lies(config, tmp_path):
    known = pq.read_table(Path(config.run) / "explanations").to_pylist()
    boxed = [row for row in known if row["row"] % 2]
    sides = {
        "image_id": [row["image_id"] for row in boxed],
        "left": [0] * len(boxed),
        "top": [0] * len(boxed),
        "right": [row["width"] for row in boxed],
        "bottom": [row["height"] for row in boxed],
    }
    pq.write_table(pa.table(sides), tmp_path / "boxes.parquet")
    few = replace(config, seed=5, methods="reciprocam,random")
    everywhere = replace(few, boxes=str(tmp_path / "boxes.parquet"))
    code, told = run_evaluation(everywhere)
    assert code is Exit.COMPLETE, told
    rows = [row for row in measured(everywhere) if row["metric"] in ("pointing", "mass")]
    assert len(rows) == 12 * 2 * 2
    assert {row["row"] % 2 for row in rows} == {0, 1}
    for row in rows:
        assert row["value"] == (pytest.approx(1.0) if row["row"] % 2 else None), row
    assert "Pointing" in told


def test_masks_are_boxes_of_any_shape_and_as_large_as_their_images(config, tmp_path):
    known = pq.read_table(Path(config.run) / "explanations").to_pylist()
    ids = [row["image_id"] for row in known]
    halves = []
    for row in known:
        mask = np.zeros((row["height"], row["width"]), np.uint8)
        mask[:, : row["width"] // 2] = 255
        halves.append(png_of(mask))
    pq.write_table(pa.table({"image_id": ids, "mask": halves}), tmp_path / "masks.parquet")
    sides = {"left": 0, "top": 0, "right": [row["width"] // 2 for row in known]}
    sides |= {"bottom": [row["height"] for row in known]}
    boxes = [
        {"image_id": name} | {key: s if isinstance(s, int) else s[i] for key, s in sides.items()}
        for i, name in enumerate(ids)
    ]
    pq.write_table(pa.Table.from_pylist(boxes), tmp_path / "boxes.parquet")
    of_masks, of_boxes = (
        read_plan(
            replace(config, boxes=str(tmp_path / f"{name}.parquet")),
            read_subject(config, "an evaluation"),
        )
        for name in ("masks", "boxes")
    )
    preprocessing = read_subject(config, "an evaluation").prepared.model.preprocessing
    for name, size in zip(of_masks.sample.names, of_masks.sample.sizes, strict=True):
        by_mask, by_box = (
            covered(preprocessing, plan.boxes, name, size) for plan in (of_masks, of_boxes)
        )
        assert 0.2 < by_mask.mean() < 0.8
        np.testing.assert_array_equal(by_mask, by_box)
    bad = [png_of(np.zeros((3, 4), np.uint8))] * len(ids)
    pq.write_table(pa.table({"image_id": ids, "mask": bad}), tmp_path / "bad.parquet")
    with pytest.raises(ConfigurationError, match=r"a mask is as large as its image, .*; got 4 x 3"):
        run_evaluation(replace(config, boxes=str(tmp_path / "bad.parquet")))
    pq.write_table(pa.table({"image_id": ids, "mask": [b"x"] * len(ids)}), tmp_path / "no.parquet")
    with pytest.raises(ConfigurationError, match="a mask is a PNG image; Unidentified"):
        run_evaluation(replace(config, boxes=str(tmp_path / "no.parquet")))


def png_of(mask: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return content.getvalue()


def test_boxes_of_other_images_are_refused_before_anything_is_judged(config, tmp_path):
    (tmp_path / "boxes.csv").write_text("image_id,left,top,right,bottom\n007,1,2,3,4\n")
    with pytest.raises(ConfigurationError) as error:
        run_evaluation(replace(config, boxes=str(tmp_path / "boxes.csv")))
    (line,) = error.value.problems
    assert line.startswith(
        "--boxes: none of 12 images has a box or mask: an image_id of the run is 'ant/"
    )
    assert line.endswith("one of the file '007'")


@pytest.mark.parametrize(("gone", "refused"), [(1, False), (3, True)])
def test_images_that_are_gone_are_left_out_and_the_part_says_why(config, gone, refused):
    worker = worker_of(config, gone)
    if refused:
        with pytest.raises(StorageUnavailable, match="3 of 4 images cannot be loaded"):
            worker.part(Shard(0, 0, 4), {})
        return
    part = worker.part(Shard(0, 0, 4), {3: "ends the work on it"})
    sampled = worker.job.sample.rows.tolist()
    assert set(part.numbers["row"].to_pylist()) == set(sampled[1:3])
    assert part.left_out[sampled[0]].startswith("missing: ")
    assert part.left_out[sampled[3]] == "crashed: ends the work on it"
    assert worker.job.row_of(Shard(0, 0, 4), 3) == sampled[3]


def test_what_does_not_fit_into_memory_is_halved_to_the_same_numbers(config, monkeypatch):
    whole = worker_of(config).part(Shard(0, 0, 4), {}).numbers
    worker = worker_of(config)
    judged = worker._judged

    def short_of_memory(chosen: np.ndarray, crops: torch.Tensor) -> pa.Table:
        if len(chosen) > 2:
            raise torch.OutOfMemoryError
        return judged(chosen, crops)

    monkeypatch.setattr(worker, "_judged", short_of_memory)
    halved = worker.part(Shard(0, 0, 4), {}).numbers
    assert worker.at_once == 2
    first, second = (by_method([each]).numbers for each in (whole, halved))
    assert first.keys() == second.keys()
    for key in first.keys() - {(name, "cost") for name in METHODS.split(",")}:
        np.testing.assert_allclose(first[key], second[key], atol=2e-5)
    monkeypatch.setattr(worker, "_judged", lambda *_: _raise(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        worker.part(Shard(0, 0, 4), {})


def _raise(error: Exception) -> None:
    raise error


def worker_of(config: EvaluateConfig, gone: int = 0) -> EvaluateWorker:
    """A worker in this process, for which the first images are gone."""
    subject = read_subject(config, "an evaluation")
    plan = read_plan(config, subject)
    run_evaluation(config)
    evaluation = Evaluation(open_run(Location(str(folder_of(config)))))
    need = Resources("cpu", 1, 1, 0, loader_cpus=0, ahead=1, threads=1)
    job = evaluate_job(config, subject, evaluation, plan, need)

    def load(tables: Sequence[pa.Table]) -> Iterator[Batch]:
        for number, table in enumerate(tables):
            uris = table["uri"].to_pylist()
            lost = [f"{uri}.gone" if i < gone and not number else uri for i, uri in enumerate(uris)]
            place = table.column_names.index("uri")
            changed = table.set_column(place, "uri", pa.array(lost))
            yield load_batch(changed, job.reading, job.model.preprocessing)

    return EvaluateWorker(job, load)


def test_all_that_is_wrong_with_methods_is_told_at_once(config, tmp_path):
    wrong = replace(config, methods="rolout,rise:0,random", boxes=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigurationError) as error:
        run_evaluation(wrong)
    first, second, third = error.value.problems
    assert first.startswith("--methods: a method is reciprocam, rollout, ")
    assert first.endswith("got 'rolout'")
    assert second.endswith("got 'rise:0'")
    assert third.endswith("none.txt must end in .parquet, .csv, .jsonl")
    with pytest.raises(ConfigurationError) as error:
        run_evaluation(replace(config, sample=0, steps=1, seed=-1, methods="random,random"))
    assert error.value.problems == [
        "--sample must be at least 1; got 0",
        "--seed must be at least 0; got -1",
        "--steps must be at least 2; got 1",
        "--methods names 'random' twice",
    ]
    with pytest.raises(ConfigurationError, match="--target label: no explained image of the run"):
        run_evaluation(replace(config, target="label"))


def test_what_is_no_finished_run_is_refused(config, tmp_path):
    with pytest.raises(ConfigurationError, match=r"RUN: .* holds no run \(no run.json\)"):
        run_evaluation(replace(config, run=str(tmp_path)))


def test_another_choice_is_another_evaluation_and_one_driver_holds_it(config):
    run_evaluation(config)
    before = {path.name for path in (Path(config.run) / "evaluate").iterdir()}
    run_evaluation(replace(config, steps=5, methods="random", seed=7))
    after = {path.name for path in (Path(config.run) / "evaluate").iterdir()}
    assert len(after - before) == 1
    with (
        Lease(Location(str(folder_of(config)))).held(False, lambda _: None),
        pytest.raises(RunHeld, match="which is alive"),
    ):
        run_evaluation(config)


def test_the_sample_is_drawn_by_the_seed_and_grows_by_more_images(config):
    run = open_run(Location(config.run))
    few, more, others = (
        set(draw(run, *choice, "predicted").rows.tolist()) for choice in ((8, 0), (16, 0), (8, 1))
    )
    assert few < more
    assert few != others
    assert len(draw(run, 1000, 0, "predicted").rows) == 60
