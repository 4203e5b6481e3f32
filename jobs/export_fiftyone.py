"""`saliency export --to fiftyone`: a dataset on disk that FiftyOne loads.

metadata.json    the dataset's fields and classes
samples.json     one sample an explained image: label, prediction, heatmap, cues and tags
data/            the images, unless these are referred to
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

from explainer.preprocess import Box
from jobs.export_fiftyone_fields import array, metadata, object_id
from jobs.export_images import AT_ONCE, Copies, refuse_inner_images
from jobs.export_names import class_names
from jobs.export_plan import Exported, Written
from jobs.export_regions import cells_in_pixels
from jobs.export_rows import read_rows
from storage.export_folders import CreatedFile
from storage.parts import in_order

WRITERS = 16
MOST_TARGETS = 5  # of an image; each is a field
PIXELS_OF_A_CELL = 4
PLAIN = {"row": "Int", "image_id": "String", "uri": "String"}
PLAIN |= {"border_mass": "Float", "entropy": "Float"}
OF_FILE = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}
Rows = Sequence[Mapping[str, Any]]  # of one image, a target each
WANTED = (
    *PLAIN,
    *("status", "label", "label_name", "predicted", "predicted_name", "probability"),
    *("target", "target_name", "target_rank", "target_probability", "saliency"),
    *("width", "height", "bytes", "format"),
)


def write(exported: Exported, console: Console) -> Written:
    """Write the images as their rows come by, then the samples and what their fields are."""
    refuse_inner_images(exported)
    copies = Copies(exported)
    files: list[CreatedFile] = []
    samples: list[bytes] = []
    for images in _images(exported, console):
        kept, created = _placed(exported, copies, images)
        files += created
        samples += [_encoded(_sample(exported, rows, place)) for rows, place in kept]
    content = b'{"samples": [\n' + b",\n".join(samples) + b"\n]}\n"
    files.append(exported.folder.create("samples.json", content))
    described = metadata(f"saliency-{exported.run.id}", _fields(exported), class_names(exported))
    files.append(exported.folder.create("metadata.json", _encoded(described) + b"\n"))
    left_out = exported.images - len(samples)
    counts = {"samples": len(samples), "images left out": left_out, **copies.counts()}
    if exported.targets_per_image > MOST_TARGETS:
        counts["targets of an image left out"] = exported.targets_per_image - MOST_TARGETS
    return Written(files, counts)


def _images(exported: Exported, console: Console) -> Iterator[Sequence[Rows]]:
    """The rows of explained images by image, of some images at a time."""
    for table in read_rows(exported, console):
        is_wanted = pc.and_(
            pc.equal(table["status"], "ok"),
            pc.less(pc.fill_null(table["target_rank"], 0), MOST_TARGETS),
        )
        images: dict[int, list[Mapping[str, Any]]] = {}
        for row in table.filter(is_wanted).select(WANTED).to_pylist():
            images.setdefault(row["row"], []).append(row)
        every = list(images.values())
        for start in range(0, len(every), AT_ONCE):
            yield every[start : start + AT_ONCE]


def _placed(
    exported: Exported, copies: Copies, images: Sequence[Rows]
) -> tuple[list[tuple[Rows, str]], list[CreatedFile]]:
    """Images with their place, below the export or elsewhere; and the copies that were made."""
    if exported.config.images == "refer":
        return [(rows, str(rows[0]["uri"])) for rows in images], []

    def copy(file: tuple[str, bytes]) -> CreatedFile:
        return exported.folder.create(*file)

    data = dict(copies.files([rows[0]["row"] for rows in images]))
    kept, contents = [], []
    for rows in images:
        content = data[rows[0]["row"]]
        if content is not None:
            kept.append((rows, file_place(rows[0])))
            contents.append((kept[-1][1], content))
    return kept, list(in_order(copy, contents, WRITERS))


def file_place(image: Mapping[str, Any]) -> str:
    """Where the copy of an image lies: by its row, since names may be anything."""
    ending = OF_FILE.get(image["format"], str(image["format"]).lower())
    return f"data/{image['row'] // 1000:06d}/{image['row']:09d}.{ending}"


def _fields(exported: Exported) -> dict[str, str]:
    targets = range(min(exported.targets_per_image, MOST_TARGETS))
    fields = {"metadata": "ImageMetadata", **PLAIN}
    fields |= {"ground_truth": "Classification", "prediction": "Classification"}
    for rank in targets:
        fields |= {_of_rank("target", rank): "Classification"}
        fields |= {_of_rank("saliency", rank): "Heatmap"}
    return fields if exported.found is None else fields | {"cues": "Detections"}


def _of_rank(name: str, rank: int) -> str:
    return f"{name}_{rank}" if rank else name


def _sample(exported: Exported, rows: Rows, place: str) -> dict[str, Any]:
    image, number = rows[0], rows[0]["row"]
    name = (exported.run.id, number)
    sample: dict[str, Any] = {
        "_id": object_id(*name),
        "_media_type": "image",
        "_rand": int(object_id(*name)["$oid"][:8], 16) / 2**32,
        "filepath": place,
        "tags": _tags(exported, image),
        "metadata": {"_cls": "ImageMetadata", "size_bytes": image["bytes"]}
        | {side: image[side] for side in ("width", "height")},
        **{column: image[column] for column in PLAIN},
    }
    if image["label_name"] is not None:
        sample["ground_truth"] = _classification(image["label_name"], None, *name, "label")
    predicted, probability = image["predicted_name"], image["probability"]
    sample["prediction"] = _classification(predicted, probability, *name, "prediction")
    seen = exported.finished.preprocessing.seen(image["height"], image["width"])
    for row in rows:
        rank = row["target_rank"]
        of_target = row["target_name"], row["target_probability"]
        sample[_of_rank("target", rank)] = _classification(*of_target, *name, "target", rank)
        values = heatmap(row["saliency"], exported.grid, image, seen)
        sample[_of_rank("saliency", rank)] = {
            **{"_id": object_id(*name, "saliency", rank), "_cls": "Heatmap", "tags": []},
            **{"map": array(values), "range": [0.0, 255.0]},
        }
    if exported.found is not None:
        sample["cues"] = {"_cls": "Detections", "detections": _cues(exported, image)}
    return sample


def _classification(label: str, confidence: float | None, *name: object) -> dict[str, Any]:
    known = {} if confidence is None else {"confidence": confidence}
    of = {"_id": object_id(*name), "_cls": "Classification", "tags": []}
    return {**of, "label": label, **known}


def _tags(exported: Exported, image: Mapping[str, Any]) -> list[str]:
    """Wrong predictions and strange labels, and of carriers their cues and verdicts."""
    tags = set()
    if image["label"] is None and image["label_name"] is not None:
        tags.add("unknown label")
    if image["label"] is not None and image["label"] != image["predicted"]:
        tags.add("wrong")
    found = exported.found
    for carrier in () if found is None else found.by_row.get(image["row"], ()):
        tags |= {"carrier", carrier.cue.verdict, carrier.cue.name}
    return sorted(tags)


def heatmap(
    saliency: Sequence[float], grid: tuple[int, int], image: Mapping[str, Any], seen: Box
) -> NDArray[np.uint8]:
    """A map over the whole image, as FiftyOne stretches it: 0 where the model saw nothing.

    A cell has about 4 x 4 pixels, so that its borders lie within an eighth of it.
    """
    cells = np.reshape(np.asarray(saliency, np.float32), grid)
    down = _cells_of(grid[0], image["height"], seen[1], seen[3])
    across = _cells_of(grid[1], image["width"], seen[0], seen[2])
    values = cells[np.clip(down, 0, grid[0] - 1)][:, np.clip(across, 0, grid[1] - 1)]
    inside = ((down >= 0) & (down < grid[0]))[:, None] & (across >= 0) & (across < grid[1])
    return np.asarray(np.where(inside, np.round(255 * values), 0), np.uint8)


def _cells_of(cells: int, length: int, start: float, end: float) -> NDArray[np.int64]:
    """Along one side of an image, in which cell each of the heatmap's pixels is."""
    pixels = min(max(round(PIXELS_OF_A_CELL * cells * length / (end - start)), 1), 4096)
    middles = (np.arange(pixels) + 0.5) / pixels * length
    return np.floor((middles - start) / (end - start) * cells).astype(np.int64)


def _cues(exported: Exported, image: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = exported.found
    detections = []
    for carrier in () if found is None else found.by_row.get(image["row"], ()):
        boxes = np.array(cells_in_pixels(exported, carrier, image))
        if not len(boxes):
            continue
        sides = np.array([image["width"], image["height"]])
        corner, end = boxes[:, :2].min(0) / sides, boxes[:, 2:].max(0) / sides
        name = (exported.run.id, carrier.row, *carrier.cue.key)
        detections.append(
            {
                **{"_id": object_id(*name), "_cls": "Detection", "tags": [], "attributes": {}},
                "label": carrier.cue.name,
                "bounding_box": [*map(float, corner), *map(float, end - corner)],
                "confidence": carrier.likeness,
                "verdict": carrier.cue.verdict,
            }
        )
    return detections


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
