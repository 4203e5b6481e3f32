"""The tables that a run writes: one schema each, from which writers, readers and docs are made.

A new nullable column leaves SCHEMA_VERSION as it is; a column that changes or goes raises it.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.digests import table_digest, type_name

SCHEMA_VERSION = 1
CONTENT_DIGEST = "content_digest"

# Few values, many rows; of any other column a dictionary would be a second copy.
_DICTIONARY = {
    *("run", "label_name", "status", "format", "mode", "predicted_name"),
    *("target_name", "target_kind", "group"),
}


def explanations(grid: tuple[int, int]) -> pa.Schema:
    """The schema of a part, for maps of `grid` = (rows, columns) cells.

    Key: (row, target_rank). An explained image has one row for each target, any other exactly one.
    """
    saliency = pa.list_(pa.float16(), grid[0] * grid[1])
    fields = [
        _always("run", pa.string(), "first 16 hex digits of the run's fingerprint"),
        _always("row", pa.int64(), "row of the manifest, from 0"),
        _always("image_id", pa.string(), "the image's name, unique in the manifest"),
        _field("uri", pa.string(), "where the image was read from"),
        _field("label", pa.int32(), "class index of the label; null where it is no class"),
        _field("label_name", pa.string(), "label as the manifest has it"),
        _always("status", pa.string(), "ok, or why the image has no map"),
        _field("error", pa.string(), "one line about what went wrong; null where status is ok"),
        _field("width", pa.int32(), "pixels of the file as stored, EXIF orientation not applied"),
        _field("height", pa.int32(), "pixels of the file as stored, EXIF orientation not applied"),
        _field("format", pa.string(), "file format as decoded, such as JPEG"),
        _field("mode", pa.string(), "colour mode of the file before conversion to RGB"),
        _field("bytes", pa.int64(), "size of the file"),
        _field("has_exif", pa.bool_(), "whether the file holds EXIF data"),
        _field("jpeg_quality", pa.int16(), "estimated quality of a JPEG, 1 to 100"),
        _field("mean_r", pa.float32(), "mean of the crop's red channel, in [0, 1]"),
        _field("mean_g", pa.float32(), "mean of the crop's green channel, in [0, 1]"),
        _field("mean_b", pa.float32(), "mean of the crop's blue channel, in [0, 1]"),
        _field("contrast", pa.float32(), "standard deviation of the crop's luminance in [0, 1]"),
        _field("sharpness", pa.float32(), "variance of the Laplacian of the crop's luminance"),
        _field("predicted", pa.int32(), "class index of the prediction"),
        _field("predicted_name", pa.string(), "name of the predicted class"),
        _field("probability", pa.float32(), "softmax probability of the predicted class"),
        _field("target", pa.int32(), "class index that the map explains"),
        _field("target_name", pa.string(), "name of the explained class"),
        _field("target_kind", pa.string(), "why this class: predicted, label, top or all"),
        _field("target_rank", pa.int16(), "number of the target among the image's targets, from 0"),
        _field("target_probability", pa.float32(), "softmax probability of the explained class"),
        _field(
            "saliency",
            saliency,
            "map on the token grid, row-major, normalised to [0, 1], zeros where constant",
        ),
        _field(
            "score_min",
            pa.float32(),
            "least score: log-odds of the target unless the run says logit; "
            "score = score_min + saliency * (score_max - score_min)",
        ),
        _field("score_max", pa.float32(), "largest score, as score_min"),
        _field("peak_row", pa.int16(), "row of the cell with the largest saliency, from 0"),
        _field("peak_col", pa.int16(), "column of the cell with the largest saliency, from 0"),
        _field("border_mass", pa.float32(), "share of the map's mass in the outermost ring"),
        _field(
            "entropy",
            pa.float32(),
            "Shannon entropy of the map as a distribution over cells, divided by log(cells)",
        ),
    ]
    return _schema(fields, grid)


def class_heatmaps(grid: tuple[int, int]) -> pa.Schema:
    """The schema of class_heatmaps.parquet. Key: (target_kind, target, group)."""
    cells = pa.list_(pa.float32(), grid[0] * grid[1])
    fields = [
        _always("target_kind", pa.string(), "why this class was explained, as in explanations"),
        _always("target", pa.int32(), "class index that the maps explain"),
        _field("target_name", pa.string(), "name of the explained class"),
        _always(
            "group",
            pa.string(),
            "all | correct | incorrect predictions; the latter two only where labels exist",
        ),
        _always("count", pa.int64(), "maps that were aggregated"),
        _field("mean", cells, "mean of the maps, row-major"),
        _field("std", cells, "standard deviation of the maps over images"),
        _field("mean_score", cells, "mean of the scores, as score_min in explanations"),
        _field(
            "median_range",
            pa.float32(),
            "median of score_max - score_min, each rounded to 11 bits (within 0.05%)",
        ),
    ]
    return _schema(fields, grid)


def findings() -> pa.Schema:
    """The schema of an audit's findings.parquet. Key: (target, cue)."""
    share = "95% interval"
    fields = [
        _always("target", pa.int32(), "class index"),
        _field("target_name", pa.string(), "name of the class"),
        _field("cue", pa.int16(), "number of the cue; null where the class has none"),
        _always("verdict", pa.string(), "what the audit says, as docs/audit.md defines it"),
        _always("reason", pa.string(), "the rule that applied, with its numbers"),
        _always("severity", pa.float64(), "share of the class's images right only with the cue"),
        _always("images", pa.int32(), "images of the class that were looked at"),
        _always("explained", pa.int32(), "of these, predicted as the class"),
        _always("hits", pa.int32(), "regions of these that flip other classes' images"),
        _always("passes", pa.int32(), "images that went through the model for this class"),
        _field("kind", pa.string(), "content: found wherever it lies; region: at one place"),
        _field("origin", pa.string(), "what proposed it: saliency, occlusion or a region's name"),
        _field("is_fixed", pa.bool_(), "whether its carriers hold it at one place"),
        _field("area", pa.float64(), "share of an image that it covers"),
        _field("carriers", pa.int32(), "images that hold it, of those that were looked at"),
        _field("carrier_share", pa.float64(), "carriers as a share of these"),
        _field("carrier_share_low", pa.float64(), f"lower end of its {share} (Wilson)"),
        _field("carrier_share_high", pa.float64(), f"upper end of its {share}"),
        _field("flips", pa.float64(), "share of other classes' images that it flips when pasted"),
        _field("flips_noise", pa.float64(), "the same of random pixels in its place"),
        _field("flips_other_class", pa.float64(), "the same of the region in other classes"),
        _field("flips_elsewhere", pa.float64(), "the same of another region of its carriers"),
        _field("lift", pa.float64(), "flips beyond the strongest of these three controls"),
        _field("lift_low", pa.float64(), f"lower end of its {share}"),
        _field("lift_high", pa.float64(), f"upper end of its {share}"),
        _field("p_value", pa.float64(), "of the lift, the largest over the controls"),
        _field("q_value", pa.float64(), "p_value over all cues of the audit (Benjamini-Hochberg)"),
        _field("kept_without", pa.float64(), "share of carriers still right without the cue"),
        _field("kept_elsewhere", pa.float64(), "the same with another place removed"),
        _field("drop", pa.float64(), "the difference of these two"),
        _field("drop_low", pa.float64(), f"lower end of its {share}"),
        _field("drop_high", pa.float64(), f"upper end of its {share}"),
        _field("accuracy_of_carriers", pa.float64(), "share of carriers predicted as the class"),
        _field("accuracy_of_others", pa.float64(), "share of the class's other images"),
        _field("accuracy_without", pa.float64(), "the class's accuracy if no image had the cue"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def carriers(grid: tuple[int, int]) -> pa.Schema:
    """The schema of an audit's carriers.parquet. Key: (target, cue, row)."""
    fields = [
        _always("target", pa.int32(), "class index"),
        _always("cue", pa.int16(), "number of the cue, as in the findings"),
        _always("verdict", pa.string(), "verdict on the cue"),
        _always("row", pa.int64(), "row of the manifest, as in the explanations"),
        _always("likeness", pa.float64(), "how like the cue the image is; 1 is the same"),
        _field(
            "cells",
            pa.list_(pa.bool_(), grid[0] * grid[1]),
            "which cells of the token grid the cue covers, row-major",
        ),
    ]
    return _schema(fields, grid)


def grid_of(schema: pa.Schema) -> tuple[int, int]:
    """(rows, columns) of the maps, from the metadata, since readers of lists lose the shape."""
    rows, columns = schema.metadata[b"grid"].decode().split("x")
    return int(rows), int(columns)


def markdown(schema: pa.Schema) -> str:
    """The schema as a Markdown table: column, type, meaning."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for field in schema:
        comment = field.metadata[b"comment"].decode().replace("|", "\\|")
        never = "" if field.nullable else ", never null"
        lines.append(f"| `{field.name}` | {type_name(field.type)}{never} | {comment} |")
    return "\n".join(lines) + "\n"


def maps_to_arrow(maps: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """(n, rows, columns) or (n, cells) numbers as a column of type `kind`; no nulls."""
    flat = np.ascontiguousarray(maps).reshape(-1).astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)


def maps_to_numpy(column: pa.ChunkedArray | pa.Array, grid: tuple[int, int]) -> np.ndarray:
    """The maps of a column that are not null, (n, rows, columns), in the column's precision."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    kind = column.type.value_type.to_pandas_dtype()
    return np.concatenate([np.empty(0, kind), *parts]).reshape(-1, *grid)


def encode_parquet(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """The table as Parquet: the same bytes for the same table, metadata and pyarrow.

    `metadata` joins the schema's own, and so does the digest of the content. Maps are plain and
    zstd: DuckDB reads no float16 in byte_stream_split, and a dictionary of maps helps nobody.
    """
    table = table.combine_chunks()  # a digest over many small chunks takes several times as long
    merged = {
        **(table.schema.metadata or {}),
        **{key.encode(): value.encode() for key, value in metadata.items()},
        CONTENT_DIGEST.encode(): table_digest(table).encode(),
    }
    table = table.replace_schema_metadata(dict(sorted(merged.items())))
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        **column_encoding(table.schema),
        row_group_size=max(len(table), 1),
    )
    return sink.getvalue()


def column_encoding(schema: pa.Schema) -> dict[str, Any]:
    """How Parquet writes the columns: zstd, names as dictionaries, statistics but of maps."""
    scalars = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
    names = [name for name in scalars if name in _DICTIONARY]
    return {"compression": "zstd", "use_dictionary": names, "write_statistics": scalars}


def _always(name: str, kind: pa.DataType, comment: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"comment": comment})


def _field(name: str, kind: pa.DataType, comment: str) -> pa.Field:
    return pa.field(name, kind, metadata={"comment": comment})


def _schema(fields: list[pa.Field], grid: tuple[int, int]) -> pa.Schema:
    shape = f"{grid[0]}x{grid[1]}"
    return pa.schema(fields, metadata={"grid": shape, "schema_version": str(SCHEMA_VERSION)})
