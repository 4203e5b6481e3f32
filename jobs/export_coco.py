"""`saliency export --to coco`: where the cues lie, as boxes and polygons of the images' pixels.

annotations.json   COCO instances: an annotation for each carrier, a category for each cue
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from explainer.preprocess import Box
from jobs.export_findings import Carrier
from jobs.export_plan import Exported, Written
from jobs.export_regions import cells_in_pixels
from jobs.export_rows import first_of_images, read_rows
from jobs.export_tables import rows_at

OF_IMAGE = ("row", "image_id", "uri", "width", "height")


def write(exported: Exported, console: Console) -> Written:
    """Write the annotations of all images that carry a cue."""
    images = _images(exported, console)
    numbers = {cue.key: number for number, cue in enumerate(exported.audited.cues, 1)}
    annotations: list[dict[str, Any]] = []
    for carrier in exported.audited.carriers:
        regions = cells_in_pixels(exported, carrier, images[carrier.row])
        if regions:
            ids = {"id": len(annotations) + 1, "category_id": numbers[carrier.cue.key]}
            annotations.append(ids | _annotation(carrier, regions))
    content = {
        "info": _info(exported),
        "licenses": [],
        "categories": _categories(exported),
        "images": [_image(exported, images[row]) for row in sorted(images)],
        "annotations": annotations,
    }
    data = f"{json.dumps(content, ensure_ascii=False)}\n".encode()
    counts = {"images": len(images), "boxes": len(annotations)}
    counts["outside of their image"] = len(exported.audited.carriers) - len(annotations)
    return Written([exported.folder.create("annotations.json", data)], counts)


def _images(exported: Exported, console: Console) -> Mapping[int, Mapping[str, Any]]:
    images: dict[int, Mapping[str, Any]] = {}
    for table in read_rows(exported, console):
        chosen = rows_at(first_of_images(table), exported.audited.by_row)
        images |= {row["row"]: row for row in chosen.select(OF_IMAGE).to_pylist()}
    return images


def _info(exported: Exported) -> dict[str, str]:
    return {
        "description": f"cues that audit {exported.audited.audit} found in run {exported.run.id}",
        "url": exported.run.root.shown,
    }


def _categories(exported: Exported) -> list[dict[str, Any]]:
    return [
        {"id": number, "name": f"{cue.name} ({cue.verdict})", "supercategory": cue.verdict}
        for number, cue in enumerate(exported.audited.cues, 1)
    ]


def _image(exported: Exported, image: Mapping[str, Any]) -> dict[str, Any]:
    """`file_name` is the path below the images' folder, where images came from a folder; the
    image_id where they lie within other files; else the uri."""
    uri, name = image["uri"], image["image_id"]
    is_path = bool(exported.finished.source.places) or uri.endswith(f"/{name}")
    return {
        "id": image["row"] + 1,
        "file_name": name if is_path else uri,
        "width": image["width"],
        "height": image["height"],
        "image_id": name,
        "uri": uri,
    }


def _annotation(carrier: Carrier, regions: Sequence[Box]) -> dict[str, Any]:
    edges = np.round(np.array(regions), 2)
    (left, top), (right, bottom) = edges[:, :2].min(0), edges[:, 2:].max(0)
    sizes = edges[:, 2:] - edges[:, :2]
    return {
        "image_id": carrier.row + 1,
        "bbox": [float(v) for v in np.round((left, top, right - left, bottom - top), 2)],
        "area": round(float(sizes.prod(1).sum()), 2),
        "segmentation": [[float(v) for v in _corners(*box)] for box in edges],
        "iscrowd": 0,
        "attributes": {"verdict": carrier.cue.verdict, "likeness": round(carrier.likeness, 4)},
    }


def _corners(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    return left, top, right, top, right, bottom, left, bottom
