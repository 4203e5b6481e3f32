"""The tables that an audit writes: what was found, in which images, and what classes are like."""

from collections.abc import Sequence

import pyarrow as pa

from storage.schema import SCHEMA_VERSION, always, field, with_grid


def findings() -> pa.Schema:
    """The schema of an audit's findings.parquet. Key: (target, cue)."""
    fields = [
        always("target", pa.int32(), "class index"),
        field("target_name", pa.string(), "name of the class"),
        field("cue", pa.int16(), "number of the cue; null where the class has none"),
        always("verdict", pa.string(), "what the audit says, as docs/audit.md defines it"),
        always("reason", pa.string(), "the rule that applied, with its numbers"),
        always("severity", pa.float64(), "share of the class's images right only with the cue"),
        always("images", pa.int32(), "images of the class that were looked at"),
        always("explained", pa.int32(), "of these, predicted as the class"),
        always("candidates", pa.int32(), "cues that were found; few were tested"),
        always("passes", pa.int32(), "images that went through the model for this class"),
        always("apart", pa.float64(), "AUC of its images by their colours; orders what is cleared"),
        field("kind", pa.string(), "content (alike to the pixel), background, texture or colours"),
        field("origin", pa.string(), "what proposed it, such as saliency, occlusion or mean edges"),
        field("is_fixed", pa.bool_(), "whether its carriers hold it at one place"),
        field("area", pa.float64(), "share of an image that it covers"),
        field("carriers", pa.int32(), "images that hold it, of those that were looked at"),
        *_estimate("carrier_share", "carriers as a share of these"),
        field("gap", pa.float64(), "how much more alike carriers are than any others; 0: no scale"),
        field("flips", pa.float64(), "share of other classes' images that it flips when pasted"),
        field("flips_noise", pa.float64(), "the same of random pixels in its place"),
        field("flips_other_class", pa.float64(), "the same of the region in other classes"),
        field("flips_elsewhere", pa.float64(), "the same of another region of its carriers"),
        *_estimate("lift", "flips beyond the strongest of these three controls"),
        *_estimate("shift", "the class's log-odds beyond the control that raises them most"),
        *_estimate("restored", "such a shift of carriers that lost it and got another carrier's"),
        *_estimate("gained", "such a shift of the class's other images that are given it"),
        *_estimate("pooled", "all of these shifts together, weighted by how sure each is"),
        field("p_value", pa.float64(), "of the surest of these, times how many may be asked for"),
        field("q_value", pa.float64(), "p_value over all cues of the audit (Benjamini-Hochberg)"),
        field("kept_without", pa.float64(), "share of carriers still right without the cue"),
        field("kept_elsewhere", pa.float64(), "the same with as much else removed or exchanged"),
        *_estimate("drop", "the difference of these two"),
        *_estimate("cost", "log-odds that removing it costs beyond as much else"),
        field("accuracy_of_carriers", pa.float64(), "share of carriers predicted as the class"),
        field("accuracy_of_others", pa.float64(), "share of the class's other images"),
        *_estimate("deficit", "how much more often these are right than carriers, both without"),
        *_estimate("excess", "how many more of these stay right, filled; or are, if given it"),
        *_estimate(
            "excess_cost", "how much less log-odds these lose, filled; or gain, if given it"
        ),
        field("accuracy_without", pa.float64(), "the class's accuracy if no image had the cue"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def _estimate(name: str, comment: str) -> list[pa.Field]:
    """A number and the ends of its interval."""
    return [
        field(name, pa.float64(), comment),
        field(f"{name}_low", pa.float64(), "lower end of its 95% interval"),
        field(f"{name}_high", pa.float64(), "upper end of its 95% interval"),
    ]


def carriers(grid: tuple[int, int]) -> pa.Schema:
    """The schema of an audit's carriers.parquet. Key: (target, cue, row)."""
    fields = [
        always("target", pa.int32(), "class index"),
        always("cue", pa.int16(), "number of the cue, as in the findings"),
        always("verdict", pa.string(), "verdict on the cue"),
        always("row", pa.int64(), "row of the manifest, as in the explanations"),
        always("likeness", pa.float64(), "how like the cue the image is; of content 1 is the same"),
        field(
            "cells",
            pa.list_(pa.bool_(), grid[0] * grid[1]),
            "which cells of the token grid the cue covers, row-major",
        ),
    ]
    return with_grid(fields, grid)


def statistics(of_maps: Sequence[str], properties: Sequence[str]) -> pa.Schema:
    """The schema of an audit's statistics.parquet. Key: target.

    `of_maps` are names of numbers that describe a class's maps, `properties` those of files.
    """
    fields = [
        always("target", pa.int32(), "class index"),
        field("target_name", pa.string(), "name of the class"),
        field("largest_z", pa.float64(), "z of the cell in which its mean map exceeds others most"),
        field("largest_cell", pa.int32(), "that cell, row-major, from 0"),
        field("p_value", pa.float64(), "chance of so large a z in any cell (permutations)"),
    ]
    for name in of_maps:
        fields.append(field(name, pa.float64(), "of the class's maps (docs/audit.md)"))
        fields.append(field(f"{name}_of_others", pa.float64(), "the same of other classes' maps"))
    for name in properties:
        meaning = f"chance that its {name} is larger than another class's; 0.5 tells nothing"
        fields.append(field(f"auc_{name}", pa.float64(), meaning))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})
