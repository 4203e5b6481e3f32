"""`saliency export --to huggingface`: a folder that `datasets.load_dataset` opens.

data/train-00000.parquet   one row an image: the image, its label, prediction, map and cues
README.md                  the dataset's card, which says where the data is
"""

import io
import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from jobs.export_images import Copies, refuse_inner_images
from jobs.export_names import class_names
from jobs.export_plan import Exported, Written
from jobs.export_rows import first_of_images, read_rows
from storage import schema
from storage.digests import type_name
from storage.export_folders import CreatedFile

FILE_BYTES = 256 * 2**20
GROUP_ROWS = 100  # as the hub's viewer wants rows with images
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BOX = pa.list_(pa.float32(), 4)
CUE = pa.struct(
    [
        *(("name", pa.string()), ("target", pa.int32()), ("cue", pa.int16())),
        *(("verdict", pa.string()), ("likeness", pa.float32())),
        ("cells", pa.list_(pa.bool_())),
    ]
)
# Columns as the explanations have them.
PLAIN = (
    *("image_id", "row", "uri", "label_name", "status", "error", "width", "height"),
    *("predicted_name", "probability", "target_name", "target_kind", "target_probability"),
    *("score_min", "score_max", "peak_row", "peak_col", "border_mass", "entropy"),
)
CLASSES = ("label", "predicted", "target")
OF_FURTHER = ("target", "target_name", "target_probability", "score_min", "score_max", "saliency")
CARD = """
# Saliency of run {run}

One row an image, made by `saliency export --to huggingface`. `saliency` is the map of `target` on
the token grid, {rows} x {columns} cells over `seen`, the part of the image that the model saw
(left, top, right, bottom in pixels of the file as stored, whose EXIF orientation the model does not
apply, and `datasets` does); the scores behind it are
`score_min + saliency * (score_max - score_min)`. Images that failed have a `status` that says why,
and no map. Audit: {audit}.
"""


def write(exported: Exported, console: Console) -> Written:
    """Write the files while the rows come by, then the card."""
    refuse_inner_images(exported)
    copies, rows = Copies(exported), 0
    files: list[CreatedFile] = []
    names = class_names(exported)
    for table in _of_files(_tables(exported, copies, console)):
        name = f"data/train-{len(files):05d}.parquet"
        files.append(exported.folder.create(name, _encoded(table)))
        rows += len(table)
    files.append(exported.folder.create("README.md", _card(exported, names)))
    return Written(files, {"images": rows, **copies.counts()})


def _encoded(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=GROUP_ROWS, use_dictionary=False)
    return sink.getvalue()


def features(exported: Exported, names: list[str]) -> list[dict[str, Any]]:
    """The columns as a dataset's card describes them, in their order."""
    of_row = schema.explanations(exported.grid)
    indices = {str(index): name for index, name in enumerate(names)}
    map_type = {"array2_d": {"shape": list(exported.grid), "dtype": "float16"}}
    found: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}]
    found += [{"name": name, "dtype": {"class_label": {"names": indices}}} for name in CLASSES]
    found += [{"name": "saliency", "dtype": map_type}, {"name": "seen", **_feature(BOX)}]
    found += [{"name": name, **_feature(of_row.field(name).type)} for name in PLAIN]
    if exported.found is not None:
        found.append({"name": "cues", **_feature(pa.list_(CUE))})
    if exported.targets_per_image > 1:
        found.append({"name": "further", **_feature(_further_type(exported))})
    return found


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """What a card says of an Arrow type."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        is_struct = pa.types.is_struct(inner)
        fields = [{"name": f.name, **_feature(f.type)} for f in inner] if is_struct else None
        length = {"length": kind.list_size} if pa.types.is_fixed_size_list(kind) else {}
        return {"list": fields or type_name(inner), **length}
    return {"dtype": type_name(kind)}


def _further_type(exported: Exported) -> pa.DataType:
    of_row = schema.explanations(exported.grid)
    return pa.list_(pa.struct([of_row.field(name) for name in OF_FURTHER]))


def _tables(exported: Exported, copies: Copies, console: Console) -> Iterator[pa.Table]:
    """The dataset's rows, those of a part at a time or less."""
    for table in read_rows(exported, console):
        images = first_of_images(table)
        columns = {"image": pa.nulls(len(images), IMAGE)}
        columns |= {name: images[name].cast(pa.int64()) for name in CLASSES}
        columns["saliency"] = nested(images["saliency"], exported.grid)
        columns["seen"] = _seen(exported, images)
        columns |= {name: images[name] for name in PLAIN}
        if exported.found is not None:
            columns["cues"] = _cues(exported, images)
        if exported.targets_per_image > 1:
            columns["further"] = _further(exported, table, images)
        yield from _with_images(pa.table(columns), exported, copies)


def _with_images(table: pa.Table, exported: Exported, copies: Copies) -> Iterator[pa.Table]:
    """The same rows with their images, some at a time; those that failed have none."""
    if exported.config.images == "refer":
        yield table.set_column(0, "image", _referred(table))
        return
    for start in range(0, len(table), GROUP_ROWS):
        rows = table.slice(start, GROUP_ROWS)
        wanted = rows["row"].filter(pc.equal(rows["status"], "ok")).to_pylist()
        files = dict(copies.files(wanted))
        names = [image_id.rpartition("/")[2] for image_id in rows["image_id"].to_pylist()]
        made = [
            None if files.get(row) is None else {"bytes": files[row], "path": name}
            for row, name in zip(rows["row"].to_pylist(), names, strict=True)
        ]
        yield rows.set_column(0, "image", pa.array(made, IMAGE))


def _referred(table: pa.Table) -> pa.Array:
    """Images by their uris alone."""
    is_there = pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["uri"]))
    columns = [pa.nulls(len(table), pa.binary()), table["uri"].combine_chunks()]
    mask = pc.invert(is_there.combine_chunks())
    return pa.StructArray.from_arrays(columns, fields=list(IMAGE), mask=mask)


def nested(maps: pa.ChunkedArray, grid: tuple[int, int]) -> pa.Array:
    """A column of flat maps as lists of lists, which is how `datasets` stores an Array2D."""
    flat = maps.combine_chunks()
    values, has_map = flat.flatten(), np.asarray(flat.is_valid())
    lines = pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(values) + 1, grid[1]), pa.int32()), values
    )
    ends = np.concatenate([[0], np.cumsum(has_map) * grid[0]])
    is_null = np.append(~has_map, False)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32(), mask=is_null), lines)


def _seen(exported: Exported, images: pa.Table) -> pa.Array:
    """The part of each image that its map lies on; null where the image failed."""
    seen = cache(exported.finished.preprocessing.seen)
    sizes = zip(*(images[name].to_pylist() for name in ("status", "height", "width")), strict=True)
    return pa.array([seen(*size) if status == "ok" else None for status, *size in sizes], BOX)


def _cues(exported: Exported, images: pa.Table) -> pa.Array:
    """By image the cues that an audit found in it."""
    by_row = {} if exported.found is None else exported.found.by_row
    held = [
        [
            {
                **{"name": carrier.cue.name, "target": carrier.cue.key[0]},
                **{"cue": carrier.cue.key[1], "verdict": carrier.cue.row["verdict"]},
                **{"likeness": carrier.likeness, "cells": list(carrier.cells)},
            }
            for carrier in by_row.get(row, [])
        ]
        for row in images["row"].to_pylist()
    ]
    return pa.array(held, pa.list_(CUE))


def _further(exported: Exported, table: pa.Table, images: pa.Table) -> pa.Array:
    """By image the maps of its further targets, in their order."""
    rest = table.filter(pc.greater(pc.fill_null(table["target_rank"], 0), 0))
    by_row: dict[int, list[dict[str, Any]]] = {row: [] for row in images["row"].to_pylist()}
    for row in rest.select(["row", *OF_FURTHER]).to_pylist():
        by_row[row.pop("row")].append(row)
    return pa.array(list(by_row.values()), _further_type(exported))


def _of_files(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables as large as a file is to be."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.nbytes for each in waiting) >= FILE_BYTES:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def _card(exported: Exported, names: list[str]) -> bytes:
    data = [{"split": "train", "path": "data/train-*.parquet"}]
    head = {
        "configs": [{"config_name": "default", "data_files": data}],
        "dataset_info": {"config_name": "default", "features": features(exported, names)},
    }
    rows, columns = exported.grid
    audit = "none" if exported.found is None else exported.found.audit
    text = CARD.format(run=exported.run.id, rows=rows, columns=columns, audit=audit)
    return f"---\n{json.dumps(head, indent=2)}\n---\n{text}".encode()
