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
        always("run", pa.string(), "first 16 hex digits of the run's fingerprint"),
        always("row", pa.int64(), "row of the manifest, from 0"),
        always("image_id", pa.string(), "the image's name, unique in the manifest"),
        field("uri", pa.string(), "where the image was read from"),
        field("label", pa.int32(), "class index of the label; null where it is no class"),
        field("label_name", pa.string(), "label as the manifest has it"),
        always("status", pa.string(), "ok, or why the image has no map"),
        field("error", pa.string(), "one line about what went wrong; null where status is ok"),
        field("width", pa.int32(), "pixels of the file as stored, EXIF orientation not applied"),
        field("height", pa.int32(), "pixels of the file as stored, EXIF orientation not applied"),
        field("format", pa.string(), "file format as decoded, such as JPEG"),
        field("mode", pa.string(), "colour mode of the file before conversion to RGB"),
        field("bytes", pa.int64(), "size of the file"),
        field("has_exif", pa.bool_(), "whether the file holds EXIF data"),
        field("jpeg_quality", pa.int16(), "estimated quality of a JPEG, 1 to 100"),
        field("mean_r", pa.float32(), "mean of the crop's red channel, in [0, 1]"),
        field("mean_g", pa.float32(), "mean of the crop's green channel, in [0, 1]"),
        field("mean_b", pa.float32(), "mean of the crop's blue channel, in [0, 1]"),
        field("contrast", pa.float32(), "standard deviation of the crop's luminance in [0, 1]"),
        field("sharpness", pa.float32(), "variance of the Laplacian of the crop's luminance"),
        field("predicted", pa.int32(), "class index of the prediction"),
        field("predicted_name", pa.string(), "name of the predicted class"),
        field("probability", pa.float32(), "softmax probability of the predicted class"),
        field("target", pa.int32(), "class index that the map explains"),
        field("target_name", pa.string(), "name of the explained class"),
        field("target_kind", pa.string(), "why this class: predicted, label, top or all"),
        field("target_rank", pa.int16(), "number of the target among the image's targets, from 0"),
        field("target_probability", pa.float32(), "softmax probability of the explained class"),
        field(
            "saliency",
            saliency,
            "map on the token grid, row-major, normalised to [0, 1], zeros where constant",
        ),
        field(
            "score_min",
            pa.float32(),
            "least score: log-odds of the target unless the run says logit; "
            "score = score_min + saliency * (score_max - score_min)",
        ),
        field("score_max", pa.float32(), "largest score, as score_min"),
        field("peak_row", pa.int16(), "row of the cell with the largest saliency, from 0"),
        field("peak_col", pa.int16(), "column of the cell with the largest saliency, from 0"),
        field("border_mass", pa.float32(), "share of the map's mass in the outermost ring"),
        field(
            "entropy",
            pa.float32(),
            "Shannon entropy of the map as a distribution over cells, divided by log(cells)",
        ),
    ]
    return with_grid(fields, grid)


def class_heatmaps(grid: tuple[int, int]) -> pa.Schema:
    """The schema of class_heatmaps.parquet. Key: (target_kind, target, group)."""
    cells = pa.list_(pa.float32(), grid[0] * grid[1])
    fields = [
        always("target_kind", pa.string(), "why this class was explained, as in explanations"),
        always("target", pa.int32(), "class index that the maps explain"),
        field("target_name", pa.string(), "name of the explained class"),
        always(
            "group",
            pa.string(),
            "all | correct | incorrect predictions; the latter two only where labels exist",
        ),
        always("count", pa.int64(), "maps that were aggregated"),
        field("mean", cells, "mean of the maps, row-major"),
        field("std", cells, "standard deviation of the maps over images"),
        field("mean_score", cells, "mean of the scores, as score_min in explanations"),
        field(
            "median_range",
            pa.float32(),
            "median of score_max - score_min, each rounded to 11 bits (within 0.05%)",
        ),
    ]
    return with_grid(fields, grid)


def grid_of(schema: pa.Schema) -> tuple[int, int]:
    """(rows, columns) of the maps, from the metadata, since readers of lists lose the shape."""
    rows, columns = schema.metadata[b"grid"].decode().split("x")
    return int(rows), int(columns)


def markdown(schema: pa.Schema) -> str:
    """The schema as a Markdown table: column, type, meaning."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for column in schema:
        comment = column.metadata[b"comment"].decode().replace("|", "\\|")
        never = "" if column.nullable else ", never null"
        lines.append(f"| `{column.name}` | {type_name(column.type)}{never} | {comment} |")
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
    scalars = [each.name for each in schema if not pa.types.is_fixed_size_list(each.type)]
    names = [name for name in scalars if name in _DICTIONARY]
    return {"compression": "zstd", "use_dictionary": names, "write_statistics": scalars}


def always(name: str, kind: pa.DataType, comment: str) -> pa.Field:
    """A column that is never null."""
    return pa.field(name, kind, nullable=False, metadata={"comment": comment})


def field(name: str, kind: pa.DataType, comment: str) -> pa.Field:
    """A column that may be null."""
    return pa.field(name, kind, metadata={"comment": comment})


def with_grid(fields: list[pa.Field], grid: tuple[int, int]) -> pa.Schema:
    """A schema that says how many rows and columns its maps have."""
    shape = f"{grid[0]}x{grid[1]}"
    return pa.schema(fields, metadata={"grid": shape, "schema_version": str(SCHEMA_VERSION)})
