"""What the Ray Data pipeline's tasks and actors do with a batch: decode files, explain crops."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from explainer import Explanation, decode, explain, load_model
from explainer.maps import statistics
from explainer.preprocess import Decoded, Preprocessing
from storage import schema

FILE_COLUMNS = ("width", "height", "format", "mode", "has_exif", "jpeg_quality", "contrast")
OF_FILES = (
    *("row", "image_id", "uri", "label_name", "status", "error", "bytes", "sharpness"),
    *("mean_r", "mean_g", "mean_b", *FILE_COLUMNS),
)


def load(
    files: pa.Table, preprocessing: Preprocessing, folder: str, rows: dict[str, int]
) -> pa.Table:
    """Decode a batch of files: their columns and their crops."""
    data = [value.as_buffer().to_pybytes() for value in files["bytes"].combine_chunks()]
    paths = files["path"].to_pylist()
    images = [decode(content, preprocessing) for content in data]
    ids = [os.path.relpath(path, folder) for path in paths]
    columns: dict[str, Any] = {
        "row": [rows[image_id] for image_id in ids],
        "image_id": ids,
        "uri": paths,
        "label_name": [image_id.partition("/")[0] if "/" in image_id else None for image_id in ids],
        "status": [image.status for image in images],
        "error": [image.error for image in images],
        "bytes": [len(content) for content in data],
        "sharpness": [image.sharpness for image in images],
    }
    means = [image.mean or (None, None, None) for image in images]
    for i, name in enumerate(("mean_r", "mean_g", "mean_b")):
        columns[name] = [mean[i] for mean in means]
    for name in FILE_COLUMNS:
        columns[name] = [getattr(image, name) for image in images]
    types = schema.explanations((1, 1))
    arrays = {name: pa.array(columns[name], types.field(name).type) for name in OF_FILES}
    return pa.table(arrays | {"crop": _crops(images, preprocessing)})


def _crops(images: list[Decoded], preprocessing: Preprocessing) -> pa.Array:
    """uint8 tensors as one column, zeros where there is none; read without a copy."""
    crops = np.zeros((len(images), 3, *preprocessing.input_size), dtype=np.uint8)
    for place, image in zip(crops, images, strict=True):
        if image.crop is not None:
            place[:] = image.crop
    return pa.FixedShapeTensorArray.from_numpy_ndarray(crops)


class Explain:
    """An actor of the pool: the model, loaded once, and what it makes of a batch."""

    def __init__(self, model: str, threads: int | None, ready: str) -> None:
        self.model = load_model(model, seed=0)
        if threads is not None:
            torch.set_num_threads(threads)
        self.schema = schema.explanations(self.model.grid)
        self.ready: Path | None = Path(ready, str(os.getpid()))

    def __call__(self, files: pa.Table) -> pa.Table:
        """The rows of the explanations table for a batch of decoded files."""
        if self.ready is not None:  # the first batch is there
            self.ready.write_text(repr(time.time()))
            self.ready = None
        status = files["status"].to_pylist()
        explained = np.array([each == "ok" for each in status])
        crops = files["crop"].combine_chunks().to_numpy_ndarray()[explained]
        rows = self._explained(explain(self.model, torch.from_numpy(crops)))
        # A null index gives a null row: that of an image without a map.
        place = pa.array(np.cumsum(explained) - 1, mask=~explained)
        names = self.model.class_names
        labels = [names.index(label) for label in files["label_name"].to_pylist()]
        columns = {name: files[name] for name in OF_FILES}
        columns |= {name: rows[name].take(place) for name in rows.column_names}
        columns["run"] = pa.array(["ray-data"] * len(files))
        columns["label"] = pa.array(labels, pa.int32())
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _explained(self, found: Explanation) -> pa.Table:
        saliency = found.saliency[:, 0]
        described = statistics(saliency)
        probabilities = found.logits.softmax(-1)
        predicted = found.logits.argmax(-1)
        target = found.targets[:, 0]
        names = self.model.class_names.names
        numbers = {
            "predicted": predicted,
            "probability": probabilities.amax(-1),
            "target": target,
            "target_probability": probabilities.gather(-1, found.targets)[:, 0],
            "score_min": found.scores.amin((-3, -2, -1)),
            "score_max": found.scores.amax((-3, -2, -1)),
            "peak_row": described.peak_row,
            "peak_col": described.peak_column,
            "border_mass": described.border_mass,
            "entropy": described.entropy,
        }
        columns = {
            name: pa.array(values.numpy()).cast(self.schema.field(name).type)
            for name, values in numbers.items()
        }
        columns["predicted_name"] = pa.array([names[i] for i in predicted.tolist()])
        columns["target_name"] = pa.array([names[i] for i in target.tolist()])
        columns["target_kind"] = pa.array(["predicted"] * len(target))
        columns["target_rank"] = pa.array(np.zeros(len(target), np.int16))
        kind = self.schema.field("saliency").type
        columns["saliency"] = schema.maps_to_arrow(saliency.numpy(), kind)
        return pa.table(columns)
