"""The tables that a comparison of two runs writes, and its folder.

rows/rows-00000.parquet               an image a row, in the order of run A
classes.parquet  findings.parquet
comparison.json                       created last: the whole comparison, and that it is all there
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from storage.audits import encode
from storage.exports import entries
from storage.locations import Location
from storage.schema import SCHEMA_VERSION, always, encode_parquet, field

ROWS_OF_A_FILE = 2**20
Written = tuple[Sequence[Mapping[str, Any]], pa.Schema]


def rows() -> pa.Schema:
    """The schema of the joined rows. Key: image_id."""
    fields = [always("image_id", pa.string(), "the image's name, by which rows are joined")]
    for name, kind, comment in (
        ("row", pa.int64(), "row of the manifest; null where the run has no such image"),
        ("label_name", pa.string(), "label as the manifest has it"),
        ("status", pa.string(), "ok, or why the image has no map"),
        ("predicted_name", pa.string(), "name of the predicted class"),
        ("probability", pa.float32(), "softmax probability of the predicted class"),
        ("is_right", pa.bool_(), "whether that is the label; null without a label or prediction"),
        ("target_name", pa.string(), "name of the class that is explained first"),
        ("peak_row", pa.int16(), "row of the cell with the largest saliency, from 0"),
        ("peak_col", pa.int16(), "column of that cell, from 0"),
    ):
        fields += [field(f"{name}_{side}", kind, f"run {side.upper()}: {comment}") for side in "ab"]
    correlation = "of the map of target_name_a with run B's map of the same class, if there is one"
    fields.append(field("map_correlation", pa.float32(), correlation))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def classes() -> pa.Schema:
    """The schema of classes.parquet. Key: class_name, unless the class list has it twice."""
    fields = [
        field("class_name", pa.string(), "name of the class"),
        field("images", pa.int64(), "labelled so, and predicted, in both runs"),
        field("right_a", pa.int64(), "of these, right in run A"),
        field("right_b", pa.int64(), "of these, right in run B"),
        field("became_right", pa.int64(), "of these, wrong in A and right in B"),
        field("became_wrong", pa.int64(), "of these, right in A and wrong in B"),
        field("difference", pa.float64(), "accuracy of B less that of A"),
        field("difference_low", pa.float64(), "lower end of its 95% interval"),
        field("difference_high", pa.float64(), "upper end of its 95% interval"),
        field("p_value", pa.float64(), "McNemar's exact test"),
        field("q_value", pa.float64(), "p_value over all classes (Benjamini-Hochberg)"),
        field("heatmap_images_a", pa.int64(), "maps in the class heatmap of run A"),
        field("heatmap_images_b", pa.int64(), "maps in the class heatmap of run B"),
        field("heatmap_correlation", pa.float64(), "of the two class heatmaps"),
        field("heatmap_moved", pa.float64(), "share of their mass that lies in other cells"),
        field("peak_row_a", pa.int16(), "row of the largest cell of run A's class heatmap"),
        field("peak_col_a", pa.int16(), "its column"),
        field("peak_row_b", pa.int16(), "row of the largest cell of run B's class heatmap"),
        field("peak_col_b", pa.int16(), "its column"),
        field("map_images", pa.int64(), "images with a map of the class in both runs"),
        field("map_correlation", pa.float64(), "median correlation of these images' two maps"),
        field("map_correlation_of_others", pa.float64(), "the same of two images' maps"),
        field("map_sample", pa.int64(), "images that the next four columns are of"),
        field("map_moved", pa.float64(), "share of mass that moves between the mean maps"),
        field("map_moved_by_chance", pa.float64(), "the same with maps exchanged at random"),
        field("map_p_value", pa.float64(), "how often chance moves as much"),
        field("map_q_value", pa.float64(), "map_p_value over all classes (Benjamini-Hochberg)"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def findings() -> pa.Schema:
    """The schema of findings.parquet."""
    fields = [
        field("class_name", pa.string(), "name of the class"),
        always("kind", pa.string(), "content, background, texture or colours"),
        always("change", pa.string(), "new, changed, kept, gone or unknown"),
        field("before", pa.string(), "verdict of run A's audit; null without such a cue"),
        field("after", pa.string(), "verdict of run B's audit; null without such a cue"),
        field("lift_a", pa.float64(), "flips of run A when it is pasted, beyond every control"),
        field("lift_b", pa.float64(), "the same of run B"),
        field("right_without_a", pa.float64(), "share of its carriers right without it, run A"),
        field("right_without_b", pa.float64(), "the same of run B"),
        field("overlap", pa.float64(), "carriers of both over carriers of either"),
        always("carriers", pa.int64(), "carriers that are labelled alike in both runs"),
        always("carriers_right_a", pa.int64(), "of these, right in run A"),
        always("carriers_right_b", pa.int64(), "of these, right in run B"),
        always("reason", pa.string(), "why it is called so"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def check_empty(out: Location) -> None:
    """Raise ValueError where something is there already."""
    inside = sorted(entries(out))
    if inside:
        raise ValueError(f"{out} is not empty: it holds {inside[0]}; name an empty --out")


def write(
    out: Location,
    joined: Iterator[pa.Table],
    tables: Mapping[str, Written],
    comparison: Mapping[str, Any],
) -> None:
    """Write the joined rows, the tables by name, and last the whole comparison as JSON."""
    of = {"run_a": comparison["a"]["run"], "run_b": comparison["b"]["run"]}
    for number, table in enumerate(joined):
        data = encode_parquet(table.select(rows().names).cast(rows()), of)
        out.child("rows", f"rows-{number:05d}.parquet").create(data)
    for name, (made, columns) in tables.items():
        data = encode_parquet(pa.Table.from_pylist(list(made), schema=columns), of)
        out.child(f"{name}.parquet").create(data)
    out.child("comparison.json").create(encode(comparison))
