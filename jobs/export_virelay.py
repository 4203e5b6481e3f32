"""`saliency export --to virelay`: a project in which ViRelAy shows how a class's maps cluster.

project.yaml      what ViRelAy is given; it names the others
dataset.h5        the crops that the model saw, at most --per-class of a class
attribution.h5    their maps on the token grid
analysis.h5       by class two embeddings of its maps, and clusterings of these
label_map.json    the classes' names
images.csv        which image of the run each index is
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from explainer.preprocess import decode
from jobs.export_embedding import CLUSTERINGS, clusters, embeddings
from jobs.export_images import Copies
from jobs.export_names import class_names
from jobs.export_plan import Exported, Written
from jobs.export_sample import sampled
from jobs.export_tables import csv_bytes
from storage.exports import ExportError
from storage.schema import maps_to_numpy

MOST_BYTES = 2 * 2**30
LEAST_MAPS = 8  # of a class, for clusters to mean something
OF_IMAGE = ("row", "image_id", "uri", "label_name", "predicted_name", "target_name")
Arrays = Mapping[str, NDArray[Any]]


def write(exported: Exported, console: Console) -> Written:
    """Write the project of some images of each class.

    Raises ExportError where these are too many for HDF5 files made in memory, and where no class
    has enough maps.
    """
    names = class_names(exported)
    copies = Copies(exported)
    images, crops = _with_crops(exported, copies, sampled(exported, console))
    maps = maps_to_numpy(images["saliency"], exported.grid).astype(np.float32)
    targets = images["target"].to_numpy()
    analysis = _analysis(targets, maps)
    if not analysis:
        raise ExportError(
            f"{exported.run.root}: ViRelAy shows clusters of a class's maps, and no class has "
            f"{LEAST_MAPS} that differ within themselves; explain more images"
        )
    contents = {
        "dataset.h5": _hdf5({"data": crops, "label": _labels(images, len(names))}),
        "attribution.h5": _hdf5(_attributions(images, maps, len(names))),
        "analysis.h5": _hdf5(analysis),
        "label_map.json": _label_map(names),
        "images.csv": _index(images),
        "project.yaml": _project(exported),
    }
    files = [exported.folder.create(name, data) for name, data in contents.items()]
    classes = len({key.partition("/")[0] for key in analysis})
    return Written(files, {"images": len(images), "classes analysed": classes, **copies.counts()})


def category(target: int) -> str:
    """What ViRelAy calls a class: its label map's WordNet ids need not be WordNet's."""
    return f"{target:05d}"


def _with_crops(
    exported: Exported, copies: Copies, images: pa.Table
) -> tuple[pa.Table, NDArray[np.uint8]]:
    """The images that can still be read, and what the model saw of each: [n, height, width, 3]."""
    preprocessing = exported.finished.preprocessing
    height, width = preprocessing.input_size
    needed = 3 * height * width * len(images)
    if needed > MOST_BYTES:
        raise ExportError(
            f"the crops of {len(images)} images have {needed / 2**30:.1f} GiB, more than "
            f"{MOST_BYTES / 2**30:.0f}: give a --per-class below {exported.config.per_class}"
        )
    crops = np.empty((len(images), height, width, 3), np.uint8)
    places: list[int] = []
    for place, (row, data) in enumerate(copies.files(images["row"].to_pylist())):
        decoded = None if data is None else decode(data, preprocessing)
        if decoded is not None and decoded.crop is not None:
            crops[len(places)] = decoded.crop.transpose(1, 2, 0)
            places.append(place)
        elif decoded is not None:
            copies.lost[row] = f"{decoded.status}: {decoded.error}"
    return images.take(pa.array(places, pa.int64())), crops[: len(places)]


def _labels(images: pa.Table, classes: int) -> NDArray[np.uint16]:
    """The label's class index; one more than the classes have where it is none of them."""
    return np.asarray(images["label"].fill_null(classes).to_numpy(), np.uint16)


def _attributions(images: pa.Table, maps: NDArray[np.float32], classes: int) -> Arrays:
    """ViRelAy takes the smallest axis for the colours, over which it adds up: three thirds.

    Of the model's output the run keeps the probabilities of the prediction and of the target.
    """
    prediction = np.zeros((len(images), classes), np.float32)
    of = np.arange(len(images))
    prediction[of, images["target"].to_numpy()] = images["target_probability"].to_numpy()
    prediction[of, images["predicted"].to_numpy()] = images["probability"].to_numpy()
    return {
        "index": of,
        "attribution": np.repeat(maps[..., None] / 3, 3, -1),
        "label": _labels(images, classes),
        "prediction": prediction,
    }


def _analysis(targets: NDArray[np.int32], maps: NDArray[np.float32]) -> Arrays:
    """By path in the file: of each class its maps' indices, embeddings and clusterings."""
    found: dict[str, NDArray[Any]] = {}
    for target in np.unique(targets):
        mine = np.flatnonzero(targets == target)
        if len(mine) < LEAST_MAPS:
            continue
        of_class, name = embeddings(maps[mine].reshape(len(mine), -1)), category(int(target))
        found[f"{name}/index"] = mine
        found |= {f"{name}/embedding/{kind}": values for kind, values in of_class.items()}
        for count in CLUSTERINGS:
            found[f"{name}/cluster/kmeans-{count}"] = clusters(of_class["spectral"], count)
    return found


def _hdf5(arrays: Arrays) -> bytes:
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        for path, values in arrays.items():
            is_large = values.ndim > 2
            file.create_dataset(path, data=values, compression="gzip" if is_large else None)
    return sink.getvalue()


def _label_map(names: list[str]) -> bytes:
    every = [*names, "(no label of the model)"]
    labels = [
        {"index": index, "word_net_id": category(index), "name": name}
        for index, name in enumerate(every)
    ]
    return f"{json.dumps(labels, indent=2)}\n".encode()


def _index(images: pa.Table) -> bytes:
    rows = zip(*(images[name].to_pylist() for name in OF_IMAGE), strict=True)
    return csv_bytes(["index", *OF_IMAGE], [[i, *row] for i, row in enumerate(rows)])


def _project(exported: Exported) -> bytes:
    identity = exported.run.description["fingerprint_of"]
    strategy = "true_label" if identity["method"].get("target") == "label" else "predicted_label"
    project = {
        "name": f"Saliency of run {exported.run.id}",
        "model": identity["model"]["name"],
        "label_map": "label_map.json",
        "dataset": {"name": exported.run.id, "type": "hdf5", "path": "dataset.h5"},
        "attributions": {
            "attribution_method": identity["method"].get("name", "ViT-ReciproCAM"),
            "attribution_strategy": strategy,
            "sources": ["attribution.h5"],
        },
        "analyses": [{"analysis_method": "Spectral", "sources": ["analysis.h5"]}],
    }
    text = json.dumps({"project": project}, indent=2)  # which is YAML, too
    return text.encode()
