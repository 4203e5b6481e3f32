"""Odd models and manifests that change: refused before Ray starts, or a status of one image."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from explainer import ReciproCam, Target, explain, load_model
from explainer.models import PreprocessingOverrides
from explainer.preprocess import decode
from jobs.config import ConfigurationError, ExplainConfig, InputConfig, MethodConfig
from jobs.part import Chunk, RowMaker
from jobs.prepare import prepare
from storage.runs import FingerprintMismatch, open_or_create

_SINK = io.BytesIO()
Image.new("RGB", (9, 9)).save(_SINK, "PNG")
PICTURE = _SINK.getvalue()
ARGUMENTS = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.fixture
def config(image_folder: Path, tiny_model, tmp_path: Path) -> ExplainConfig:
    return ExplainConfig(
        model=tiny_model, out=str(tmp_path / "run"), input=InputConfig(images=str(image_folder))
    )


def problems(config: ExplainConfig) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        prepare(config)
    return caught.value.problems


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(config, tmp_path, value):
    model = load_model(config.model.name, seed=0, model_args=json.loads(config.model.model_args))
    model.vit.blocks[1].attn.qkv.weight[3, 4] = value
    model.vit.head.bias[0] = value
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors.torch.save(dict(model.vit.state_dict())))
    (line,) = problems(replace(config, model=replace(config.model, checkpoint=str(path))))
    assert line == (
        "--model: vit_tiny_patch16_224's weights hold NaN or infinity, in blocks.1.attn.qkv.weight "
        "and 1 more: no image can be explained with them; give weights that are finite"
    )


def test_a_head_that_is_not_finite_is_refused_too(config, tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.full((3, 48), torch.nan)}))
    (line,) = problems(replace(config, model=replace(config.model, head=str(path))))
    assert "hold NaN or infinity, in head.weight: " in line


def test_a_head_with_one_class_has_logits_and_no_log_odds(config):
    arguments = json.dumps(json.loads(config.model.model_args) | {"num_classes": 1})
    one = replace(config, model=replace(config.model, model_args=arguments))
    (line,) = problems(one)
    assert line == (
        "method: log-odds compare a class with the others, and this model has one; use score logit "
        "(--score logit)"
    )
    logit = prepare(replace(one, method=MethodConfig(score="logit")))
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    explained = explain(logit.model, crops, target=logit.target, method=logit.method)
    assert explained.targets.tolist() == [[0], [0]]
    assert explained.is_finite.all()


def rows_of(crops: list[np.ndarray], std: float, target: str = "predicted") -> pa.Table:
    """The rows of images under a model that divides pixels by `std`."""
    overrides = PreprocessingOverrides(mean=(0.0, 0.0, 0.0), std=(std, std, std))
    model = load_model("vit_tiny_patch16_224", seed=0, model_args=ARGUMENTS, overrides=overrides)
    stacked = torch.from_numpy(np.stack(crops))
    explained = explain(model, stacked, target=target, method=ReciproCam())
    ok = decode(PICTURE, model.preprocessing)
    images = [replace(ok, crop=None) for _ in crops]
    missing = replace(images[0], status="missing", error="gone")
    chunk = Chunk(0, [images[0], missing, *images[1:]], [1] * (len(crops) + 1), explained)
    names = pa.array([str(number) for number in range(len(crops) + 1)])
    manifest = pa.table({"image_id": names, "uri": names, "label": names})
    return RowMaker("run", model, Target.parse(target)).rows(manifest, chunk)


def test_an_image_on_which_the_model_overflows_has_a_status_and_spoils_no_other():
    black, white = (np.full((3, 32, 32), value, np.uint8) for value in (0, 255))
    rows = rows_of([black, white, black], 1e-38, "top:2")
    assert rows["row"].to_pylist() == [0, 0, 1, 2, 3, 3]
    statuses = ["ok", "ok", "missing", "not_finite", "ok", "ok"]
    assert rows["status"].to_pylist() == statuses
    assert rows["error"][3].as_py() == "the model's outputs overflow on this image"
    assert rows["width"].null_count == 0
    assert rows["target"].is_valid().to_pylist() == [status == "ok" for status in statuses]
    alone = rows_of([black], 1e-38, "top:2")
    assert rows.slice(4)["score_max"].to_pylist() == alone["score_max"].to_pylist()[:2]
    every = rows_of([white, white], 1e-38)
    assert every["status"].to_pylist() == ["not_finite", "missing", "not_finite"]
    assert every["saliency"].null_count == 3


def test_a_constant_map_is_ok():
    rows = rows_of([np.zeros((3, 32, 32), np.uint8)], 1.0).slice(0, 1).to_pylist()
    assert rows[0]["status"] == "ok"
    assert np.isfinite([rows[0]["score_min"], rows[0]["score_max"]]).all()


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_manifest_that_changed_between_two_starts_is_refused(config, tmp_path, name):
    def write(uris: list[str]) -> ExplainConfig:
        table = pa.table({"uri": uris})
        if name == "list.csv":
            table.to_pandas().to_csv(tmp_path / name, index=False)
        else:
            pq.write_table(table, tmp_path / name)
        return replace(config, input=InputConfig(manifest=str(tmp_path / name)))

    first = prepare(write(["/a", "/b"]))
    open_or_create(first.out, first.description)
    same = prepare(write(["/a", "/b"]))
    open_or_create(same.out, same.description)
    other = prepare(write(["/a", "/c"]))
    digests = [json.dumps(each.manifest.digest) for each in (first, other)]
    wanted = f"  manifest: run has {digests[0]}, this command has {digests[1]}"
    with pytest.raises(FingerprintMismatch) as caught:
        open_or_create(other.out, other.description)
    assert wanted in str(caught.value).splitlines()
