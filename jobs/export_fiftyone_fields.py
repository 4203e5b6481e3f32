"""What FiftyOne's dataset on disk says of its fields, and how it writes ids and arrays."""

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

# FiftyOne brings older datasets up to its own version, and refuses newer ones.
VERSION = "1.0.0"
ALWAYS = {
    **{"id": "ObjectId", "_dataset_id": "ObjectId", "_rand": "Float", "_media_type": "String"},
    **{"filepath": "String", "created_at": "DateTime", "last_modified_at": "DateTime"},
}
LABEL = {"id": "ObjectId", "tags": "List:String"}
CLASSIFICATION = {**LABEL, "label": "String", "confidence": "Float", "logits": "Vector"}
HEATMAP = {**LABEL, "map": "Array", "map_path": "String", "range": "HeatmapRange:Float"}
IMAGE = {
    **{"size_bytes": "Int", "mime_type": "String", "width": "Int", "height": "Int"},
    "num_channels": "Int",
}
DETECTION = {
    **LABEL,
    **{"label": "String", "bounding_box": "List:Float", "mask": "Array", "mask_path": "String"},
    **{"confidence": "Float", "index": "Int", "verdict": "String"},
}
DOCUMENTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Classification": ("fiftyone.core.labels.Classification", CLASSIFICATION),
    "Heatmap": ("fiftyone.core.labels.Heatmap", HEATMAP),
    "ImageMetadata": ("fiftyone.core.metadata.ImageMetadata", IMAGE),
}


def metadata(name: str, fields: Mapping[str, str], classes: Sequence[str]) -> dict[str, Any]:
    """metadata.json of a dataset of images; `fields` are the types of its own fields by name, as
    String, List:Float, Classification or Detections."""
    every = {**ALWAYS, "tags": "List:String", **fields}
    return {
        "name": name,
        "version": VERSION,
        "media_type": "image",
        "sample_fields": [field(name, kind) for name, kind in every.items()],
        "classes": {name: list(classes) for name in ("ground_truth", "prediction")},
        "default_classes": list(classes),
        "info": {},
        "tags": [],
        "app_config": {"media_fields": ["filepath"], "grid_media_field": "filepath"},
    }


def field(name: str, kind: str) -> dict[str, Any]:
    """One field, with those within it."""
    document, inner, subfield = None, [], None
    outer, _, of = kind.partition(":")
    if kind in DOCUMENTS:
        document, within = DOCUMENTS[kind]
        outer, inner = "EmbeddedDocument", [field(n, k) for n, k in within.items()]
    elif kind == "Detections":
        outer, document = "EmbeddedDocument", "fiftyone.core.labels.Detections"
        inner = [_detections()]
    elif of:
        subfield = _type(of)
    return {
        "name": name,
        "ftype": _type(outer),
        "embedded_doc_type": document,
        "subfield": subfield,
        "fields": inner,
        "db_field": "_id" if name == "id" else name,
        "description": None,
        "info": None,
        "read_only": name in ("created_at", "last_modified_at"),
    }


def _detections() -> dict[str, Any]:
    return {
        **field("detections", "List:EmbeddedDocument"),
        "embedded_doc_type": "fiftyone.core.labels.Detection",
        "fields": [field(name, kind) for name, kind in DETECTION.items()],
    }


def _type(kind: str) -> str:
    return f"fiftyone.core.fields.{kind}Field"


def object_id(*names: object) -> dict[str, str]:
    """An id that follows from what it is of, so that the same export makes the same file."""
    return {"$oid": sha256("\0".join(map(str, names)).encode()).hexdigest()[:24]}


def array(values: NDArray[np.uint8]) -> dict[str, Any]:
    """An array within JSON: a compressed .npy file."""
    sink = io.BytesIO()
    np.save(sink, values, allow_pickle=False)
    text = base64.b64encode(zlib.compress(sink.getvalue())).decode()
    return {"$binary": {"base64": text, "subType": "00"}}
