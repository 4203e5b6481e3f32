"""The rows of a part: what became of each image, and the maps of each of its targets.

Columns are made whole, never row by row: a GPU explains thousands of images a second.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from explainer import Explanation, Target, VitClassifier
from explainer.maps import statistics
from jobs.loader import Batch
from storage import schema

# Columns that are attributes of a decoded image.
OF_THE_IMAGE = (
    "status", "error", "width", "height", "format", "mode", "has_exif", "jpeg_quality",
    "contrast", "sharpness",
)  # fmt: skip


class RowMaker:
    """Makes the rows of one run's parts: one an image, or one a target of an explained image."""

    def __init__(self, run: str, model: VitClassifier, target: Target) -> None:
        self.run, self.target_kind = run, target.kind
        self.classes = model.class_names
        self.names = pa.array(model.class_names.names, pa.string())
        self.schema = schema.explanations(model.grid)

    def rows(
        self, first_row: int, manifest_rows: pa.Table, batch: Batch, explained: Explanation | None
    ) -> pa.Table:
        """The rows of a batch of images, the first of which is `first_row` of the manifest.

        `explained` holds those of them whose status is ok, in their order; None where none is.
        """
        images = self._of_images(first_row, manifest_rows, batch)
        ok = np.array([image.status == "ok" for image in batch.images])
        if explained is None:
            others = [name for name in self.schema.names if name not in images.column_names]
            targets, per_image = self.schema.empty_table().select(others), 1
        else:
            targets, per_image = self._of_targets(explained), explained.targets.shape[1]
        image_of_row = np.repeat(np.arange(len(ok)), np.where(ok, per_image, 1))
        has_target = ok[image_of_row]
        target_of_row = pa.array(np.cumsum(has_target) - 1, mask=~has_target)
        halves = (images.take(image_of_row), targets.take(target_of_row))
        columns = {name: half[name] for half in halves for name in half.column_names}
        return pa.table(columns, schema=self.schema)

    def _of_images(self, first_row: int, manifest_rows: pa.Table, batch: Batch) -> pa.Table:
        """The columns that an image's rows share, whatever became of it; one row an image."""
        images = batch.images
        labels = manifest_rows["label"]
        colours = [image.mean or (None, None, None) for image in images]
        return self._table(
            {name: [getattr(image, name) for image in images] for name in OF_THE_IMAGE}
            | {
                "run": [self.run] * len(images),
                "row": np.arange(first_row, first_row + len(images)),
                "image_id": manifest_rows["image_id"],
                "uri": manifest_rows["uri"],
                "label": [self.classes.index(label) for label in labels.to_pylist()],
                "label_name": labels.cast(pa.string()),
                "bytes": batch.sizes,
                "mean_r": [red for red, _, _ in colours],
                "mean_g": [green for _, green, _ in colours],
                "mean_b": [blue for _, _, blue in colours],
            }
        )

    def _of_targets(self, explained: Explanation) -> pa.Table:
        """The columns that a target's row adds; one row a target, image by image."""
        images, per_image = explained.targets.shape
        # Of the logits, like the targets: probabilities that saturate can tie.
        predicted = _numbers(explained.logits.argmax(-1)).repeat(per_image)
        targets = _numbers(explained.targets)
        probabilities = explained.logits.softmax(-1)
        saliency = explained.saliency.cpu()
        described = statistics(saliency)
        return self._table(
            {
                "predicted": predicted,
                "predicted_name": self.names.take(predicted),
                "probability": _numbers(probabilities.amax(-1)).repeat(per_image),
                "target": targets,
                "target_name": self.names.take(targets),
                "target_kind": [self.target_kind] * len(targets),
                "target_rank": np.tile(np.arange(per_image), images),
                "target_probability": _numbers(probabilities.gather(-1, explained.targets)),
                "saliency": schema.maps_to_arrow(
                    saliency.flatten(0, 1).half().numpy(), self.schema.field("saliency").type
                ),
                "score_min": _numbers(explained.scores.amin((-2, -1))),
                "score_max": _numbers(explained.scores.amax((-2, -1))),
                "peak_row": _numbers(described.peak_row),
                "peak_col": _numbers(described.peak_column),
                "border_mass": _numbers(described.border_mass),
                "entropy": _numbers(described.entropy),
            }
        )

    def _table(self, columns: Mapping[str, Any]) -> pa.Table:
        """Some of the schema's columns, from lists, NumPy or Arrow arrays."""
        return pa.table(columns, schema=pa.schema([self.schema.field(name) for name in columns]))


def _numbers(values: Tensor) -> np.ndarray:
    """A tensor's numbers in row-major order, in a precision that loses none of them."""
    return (values.double() if values.is_floating_point() else values).flatten().cpu().numpy()
