"""The rows of a part: what became of each image, and the maps of each of its targets.

Columns are made whole, never row by row: a GPU explains thousands of images a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from explainer import Explanation, Target, VitClassifier
from explainer.maps import statistics
from explainer.preprocess import Decoded
from storage import schema
from storage.columns import without_secrets

# Columns that are attributes of a decoded image.
OF_THE_IMAGE = (
    "status", "error", "width", "height", "format", "mode", "has_exif", "jpeg_quality",
    "contrast", "sharpness",
)  # fmt: skip

OVERFLOW = "the model's outputs overflow on this image"


@dataclass(frozen=True)
class Chunk:
    """Images of consecutive manifest rows, and what became of them.

    `first_row` is the first one's row; `images` and `sizes` hold one item an image; `explained`
    those whose status is ok, in their order, and is None where none is.
    """

    first_row: int
    images: Sequence[Decoded]
    sizes: Sequence[int | None]
    explained: Explanation | None

    @classmethod
    def joined(cls, chunks: Sequence["Chunk"]) -> "Chunk":
        """Chunks that follow each other, as one."""
        explained = [chunk.explained for chunk in chunks if chunk.explained is not None]
        return cls(
            chunks[0].first_row,
            [image for chunk in chunks for image in chunk.images],
            [size for chunk in chunks for size in chunk.sizes],
            Explanation.concatenated(explained) if explained else None,
        )

    def finite(self) -> "Chunk":
        """The same, but an image whose logits or scores overflowed has a status, and no map."""
        if self.explained is None or (is_finite := self.explained.is_finite).all():
            return self
        verdicts = iter(is_finite.tolist())
        images = [
            image
            if image.status != "ok" or next(verdicts)
            else replace(image, status="not_finite", error=OVERFLOW)
            for image in self.images
        ]
        explained = self.explained.only(is_finite) if is_finite.any() else None
        return replace(self, images=images, explained=explained)


class RowMaker:
    """Makes the rows of one run's parts: one an image, or one a target of an explained image."""

    def __init__(self, run: str, model: VitClassifier, target: Target) -> None:
        self.run, self.target_kind = run, target.kind
        self.classes = model.class_names
        self.names = pa.array(model.class_names.names, pa.string())
        self.schema = schema.explanations(model.grid)

    def rows(self, manifest_rows: pa.Table, chunk: Chunk) -> pa.Table:
        """The rows of a chunk of images; `manifest_rows` are those of its images alone."""
        chunk = chunk.finite()
        images = self._of_images(manifest_rows, chunk)
        explained = chunk.explained
        ok = np.array([image.status == "ok" for image in chunk.images])
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

    def _of_images(self, manifest_rows: pa.Table, chunk: Chunk) -> pa.Table:
        """The columns that an image's rows share, whatever became of it; one row an image."""
        images = chunk.images
        labels = manifest_rows["label"]
        colours = [image.mean or (None, None, None) for image in images]
        return self._table(
            {name: [getattr(image, name) for image in images] for name in OF_THE_IMAGE}
            | {
                "run": [self.run] * len(images),
                "row": np.arange(chunk.first_row, chunk.first_row + len(images)),
                "image_id": manifest_rows["image_id"],
                "uri": without_secrets(manifest_rows["uri"]),
                "label": [self.classes.index(label) for label in labels.to_pylist()],
                "label_name": labels.cast(pa.string()),
                "bytes": chunk.sizes,
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
