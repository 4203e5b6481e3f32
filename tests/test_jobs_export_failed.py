"""What runs with nothing to show become, and what exporting loads."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pandas as pd
import pytest
from rich.console import Console

from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit, ExplainConfig, InputConfig
from jobs.export import export


@pytest.fixture(scope="module")
def failed(small_config: ExplainConfig, run_job, tmp_path_factory) -> Path:
    """A finished run whose every image is undecodable."""
    folder = tmp_path_factory.mktemp("failed")
    (folder / "images" / "ant").mkdir(parents=True)
    for number in range(3):
        (folder / "images" / "ant" / f"{number}.jpg").write_bytes(b"no image")
    images = InputConfig(images=str(folder / "images"))
    config = replace(small_config, out=str(folder / "run"), input=images)
    assert run_job(config)[0] is Exit.TOO_MANY_FAILED
    return folder / "run"


def exported(root: Path, out: Path, to: str) -> Path:
    request = ExportConfig(str(root), str(out), to=to)
    assert export(request, Console(file=io.StringIO())) is Exit.COMPLETE
    return out


def test_a_run_of_failed_images_is_a_dataset_without_maps(failed, tmp_path):
    out = exported(failed, tmp_path / "out", "huggingface")
    dataset = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset["status"] == ["undecodable"] * 3
    assert list(dataset["saliency"]) == [None] * 3
    assert list(dataset["image"]) == [None] * 3


def test_a_run_of_failed_images_has_no_samples_and_nothing_to_look_at(failed, tmp_path):
    out = exported(failed, tmp_path / "fiftyone", "fiftyone")
    assert json.loads((out / "samples.json").read_text()) == {"samples": []}
    assert json.loads((out / "export.json").read_text())["images left out"] == 3
    table = pd.read_csv(exported(failed, tmp_path / "relabel", "relabel") / "relabel-00000.csv")
    assert len(table) == 0
    with pytest.raises(ConfigurationError, match="and no class has 8 that differ"):
        exported(failed, tmp_path / "virelay", "virelay")


@pytest.mark.parametrize("to", ["carriers", "relabel"])
def test_lists_and_tables_are_made_without_torch_and_ray(audited, tmp_path, to):
    out = str(tmp_path / "out")
    command = ("-m", "jobs.cli", "export", str(audited.root), "--to", to, "--out", out)
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"torch", "ray", "timm", "sklearn"}
    assert "\u202e" not in answer.stdout
