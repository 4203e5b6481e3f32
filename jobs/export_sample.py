"""Some images of each class of a run, drawn as an audit draws them, with their maps."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.audit_plan import random_order
from jobs.export_plan import Exported
from jobs.export_rows import first_of_images, read_rows

COLUMNS = (
    *("row", "image_id", "uri", "label", "label_name", "predicted", "predicted_name"),
    *("probability", "target", "target_name", "target_probability", "saliency"),
)
PRUNED_AT = 2**16


def sampled(exported: Exported, console: Console) -> pa.Table:
    """At most --per-class images of each explained class, in order of their rows.

    An image counts for its first target; those with a constant map are left out.
    """
    most = exported.config.per_class
    found: list[pa.Table] = []
    for table in read_rows(exported, console):
        images = first_of_images(table)
        has_shape = pc.fill_null(pc.greater(images["score_max"], images["score_min"]), False)
        found.append(first(images.filter(has_shape).select(COLUMNS), most))
        if sum(map(len, found[1:])) > PRUNED_AT + len(found[0]):  # seldom: each time all are sorted
            found = [first(pa.concat_tables(found), most)]
    return first(pa.concat_tables(found), most)


def first(images: pa.Table, most: int) -> pa.Table:
    """At most so many of each class, by a random order that follows from the rows."""
    rows, targets = images["row"].to_numpy(), images["target"].to_numpy()
    by_class = np.lexsort((random_order(rows, 0), targets))
    ordered = targets[by_class]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return images.take(pa.array(np.sort(by_class[rank < most])))
