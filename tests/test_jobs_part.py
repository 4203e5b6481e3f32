"""The rows of a part: an image on which the model overflows is one row, and spoils no other."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from explainer import ReciproCam, Target, explain, load_model
from explainer.models import PreprocessingOverrides
from explainer.preprocess import decode
from jobs.part import Chunk, RowMaker

_SINK = io.BytesIO()
Image.new("RGB", (9, 9)).save(_SINK, "PNG")
PICTURE = _SINK.getvalue()
ARGUMENTS = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


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
    alone = rows_of([black], 1e-38, "top:2")["score_max"].to_pylist()[:2]
    # Up to rounding: some CPUs multiply a batch of one by another kernel.
    assert rows.slice(4)["score_max"].to_pylist() == pytest.approx(alone, rel=1e-5)
    every = rows_of([white, white], 1e-38)
    assert every["status"].to_pylist() == ["not_finite", "missing", "not_finite"]
    assert every["saliency"].null_count == 3


def test_a_constant_map_is_ok():
    rows = rows_of([np.zeros((3, 32, 32), np.uint8)], 1.0).slice(0, 1).to_pylist()
    assert rows[0]["status"] == "ok"
    assert np.isfinite([rows[0]["score_min"], rows[0]["score_max"]]).all()
