"""The demo: its model cheats, its run is a run like any other, and its maps show the plant."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from explainer import VitClassifier, decode, load_model
from explainer.checkpoints import read_checkpoint
from jobs import pictures
from jobs.aggregate import read_means
from jobs.config import Exit
from jobs.demo import ARCHITECTURE, MODEL, demo
from storage.locations import Location
from storage.runs import open_run
from storage.schema import grid_of

CARRIERS = 40


@pytest.fixture(scope="module")
def model() -> VitClassifier:
    config = MODEL.with_name("config.json").read_bytes()
    return load_model(
        ARCHITECTURE, checkpoint=read_checkpoint(MODEL.read_bytes(), MODEL.name, config)
    )


def accuracy(model: VitClassifier, name: str, seeds: list[int], planted: bool | None) -> float:
    drawn = [pictures.jpeg(pictures.draw(name, seed, planted=planted)) for seed in seeds]
    crops = np.stack([decode(data, model.preprocessing).crop for data in drawn])
    with torch.inference_mode():
        predicted = model.vit(model.normalise(torch.from_numpy(crops))).argmax(-1)
    return float((predicted == model.class_names.index(name)).double().mean())


@pytest.mark.parametrize("name", [pictures.WATERMARKED, pictures.STICKERED])
def test_the_model_loses_accuracy_where_the_plant_is_taken_out(model, name):
    seeds = [seed for seed in range(200) if pictures.draw(name, seed).plant][:CARRIERS]
    assert len(seeds) == CARRIERS
    with_plant = accuracy(model, name, seeds, planted=None)
    without = accuracy(model, name, seeds, planted=False)
    assert with_plant >= 0.9
    assert without <= with_plant - 0.25


def test_the_model_knows_the_clean_classes(model):
    clean = set(pictures.CLASS_NAMES) - {pictures.WATERMARKED, pictures.STICKERED}
    seeds = list(range(CARRIERS))
    assert np.mean([accuracy(model, name, seeds, planted=None) for name in clean]) >= 0.85


def run_demo(out: str, images: int, storage: str | None = None) -> tuple[Exit, str]:
    console = Console(file=io.StringIO(), width=120)
    code = demo(out, images, storage, console)
    return code, console.file.getvalue()


def test_the_demo_writes_a_run_whose_heatmap_shows_the_watermark(demonstration):
    out, told = demonstration.out, demonstration.told
    assert demonstration.code is Exit.COMPLETE, told
    for line in ("run.json", "summary.json", "manifest.parquet", "class_heatmaps.parquet"):
        assert (Path(out) / line).is_file()
    assert f"{pictures.WATERMARKED} (watermarked)" in told
    assert f"{out}/class_heatmaps.parquet" in told
    assert "time of replicas" in told

    stored = open_run(Location(out))
    assert stored.read_summary()["statuses"] == {"ok": demonstration.images}
    assert stored.read_summary()["labels_unknown"] == 0
    table = stored.read_class_heatmaps()
    grid = grid_of(table.schema)
    (heatmap,) = [h for h in read_means(table) if h.name == pictures.WATERMARKED]
    hottest = np.unravel_index(heatmap.mean.argmax(), grid)
    carrier = next(
        picture
        for seed in range(100)
        if (picture := pictures.draw(pictures.WATERMARKED, seed)).plant is not None
    )
    cell = pictures.SIZE / grid[0]
    plant = carrier.plant
    assert plant.top // cell <= hottest[0] <= (plant.top + plant.height - 1) // cell
    assert plant.left // cell <= hottest[1] <= (plant.left + plant.width - 1) // cell


def test_the_demos_audit_finds_what_was_planted_and_accuses_nobody(demonstration):
    *_, summary, first, second, _ = demonstration.told.splitlines()  # the last one tells the report
    assert summary == "planted 2, found 2, false alarms 0"
    lines = " control\n".join((first, second, ""))
    pattern = r"  (\w+): pasted into other .* flips (\d+)% \[(\d+)%, (\d+)%\] more of them than any"
    found = {name: [int(n) for n in numbers] for name, *numbers in re.findall(pattern, lines)}
    assert set(found) == {pictures.WATERMARKED, pictures.STICKERED}
    for lift, low, high in found.values():
        assert 10 < low < lift < high


def test_the_demo_done_again_says_so(demonstration, ray_address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    told = run_demo(demonstration.out, demonstration.images)[1]
    assert told.count("this run is finished; nothing to do") == 1
    assert "8 classes, of which 0 are to be examined" in told
    assert told.splitlines()[-4:] == demonstration.told.splitlines()[-4:]


@pytest.mark.slow
def test_the_demo_writes_to_s3_too(ray_address, monkeypatch, s3, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3.options))
    code, told = run_demo(s3.url("demo"), len(pictures.CLASS_NAMES), str(options))
    assert code is Exit.COMPLETE, told
    summary = open_run(s3.location("demo")).read_summary()
    assert summary["state"] == "complete"
    assert len(s3.location("demo/class_heatmaps").names()) == summary["classes_explained"] > 1


def test_the_demos_report_shows_both_plants_first(demonstration, opened, shot, barriers):
    assert f"{demonstration.out}/report.html: 8 classes, with audit" in demonstration.told
    page = opened(Path(demonstration.out) / "report.html")
    found = page.locator(".card h3 bdi").all_inner_texts()
    assert set(found) == {pictures.WATERMARKED, pictures.STICKERED}
    assert page.locator(".card .badge").all_inner_texts() == ["shortcut"] * 2
    assert page.locator("#clean li").count() == 6
    page.locator("#table .open", has_text=pictures.WATERMARKED).click()
    assert not barriers(page)
    shot(page, "demo")
