"""`saliency export --to relabel`: which images people should look at again, the surest first.

relabel-00000.csv   at most a million lines each, as a spreadsheet takes: first the images whose
                    prediction is another class than their label, by falling probability; then
                    those whose label is no class of the model; then carriers with a right label,
                    of cues that are neither cleared nor untestable
"""

import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console

from jobs.export_findings import Carrier, Found
from jobs.export_plan import Exported, Written
from jobs.export_rows import first_of_images, read_rows
from jobs.export_tables import csv_bytes
from jobs.signals import terminable
from storage.export_folders import CreatedFile
from storage.exports import ExportError

LINES_OF_A_FILE = 1_000_000
OF_IMAGE = (
    *("image_id", "uri", "row", "label", "label_name", "predicted", "predicted_name"),
    "probability",
)
HEADER = (*OF_IMAGE, "label_probability", "reason", "suggested", "cues", "new_label")
DIFFERS, UNKNOWN, CARRIER, NOTHING = range(4)
REASONS = ("disagreement", "unknown label", "carrier")
IN_ORDER = """SELECT * EXCLUDE (rank, place) FROM images
              ORDER BY rank, place, probability DESC, row"""


def write(exported: Exported, console: Console) -> Written:
    """Write the tables, sorted by way of a temporary folder on a local disk.

    Raises ExportError where the run has neither labels nor an audit.
    """
    with (
        terminable(),
        tempfile.TemporaryDirectory(prefix="saliency-export-") as folder,
        duckdb.connect(str(Path(folder, "images.duckdb"))) as database,
    ):
        if not _gather(exported, console, database) and exported.found is None:
            raise ExportError(
                f"{exported.run.root} has neither labels nor an audit, so there is nothing to look "
                "at again: `saliency audit` it first, or explain images with labels"
            )
        return _written(exported, database)


def _gather(exported: Exported, console: Console, database: duckdb.DuckDBPyConnection) -> bool:
    """Put what is to be looked at into the database; whether any image has a label."""
    has_labels = False
    for number, table in enumerate(read_rows(exported, console)):
        has_labels |= table["label_name"].null_count < len(table)
        database.register("part", to_look_at(table, exported.found))
        how = "INSERT INTO images" if number else "CREATE TABLE images AS"
        database.execute(f"{how} SELECT * FROM part")
    return has_labels


def _written(exported: Exported, database: duckdb.DuckDBPyConnection) -> Written:
    counted = database.execute("SELECT rank, count(*) FROM images GROUP BY 1").fetchall()
    counts = dict(counted)
    files: list[CreatedFile] = []
    found = database.execute(IN_ORDER)
    while lines := found.fetchmany(LINES_OF_A_FILE):
        name = f"relabel-{len(files):05d}.csv"
        files.append(exported.folder.create(name, csv_bytes(HEADER, lines)))
    if not files:
        files.append(exported.folder.create("relabel-00000.csv", csv_bytes(HEADER, [])))
    return Written(files, {name: counts.get(rank, 0) for rank, name in enumerate(REASONS)})


def to_look_at(table: pa.Table, found: Found | None) -> pa.Table:
    """Of a part's images those that are to be looked at: HEADER's columns, and their order."""
    images = first_of_images(table)
    images = images.filter(pc.equal(images["status"], "ok"))
    carriers = {} if found is None else found.by_row
    held = [carriers.get(row, []) for row in images["row"].to_pylist()]
    rank = _rank(images, np.array([any(c.cue.is_accused for c in each) for each in held], bool))
    suggested = pa.scalar(None, pa.string())
    columns = {column: images[column] for column in OF_IMAGE} | {
        "label_probability": _label_probability(table, images),
        "reason": pa.array([_reason(*each) for each in zip(rank, held, strict=True)]),
        "suggested": pc.if_else(pa.array(rank < CARRIER), images["predicted_name"], suggested),
        "cues": pa.array(["; ".join(map(_told, each)) or None for each in held], pa.string()),
        "new_label": pa.nulls(len(images), pa.string()),
        "rank": pa.array(rank, pa.int8()),
        "place": _places(found, rank, images),
    }
    return pa.table(columns).filter(pa.array(rank < NOTHING))


def _rank(images: pa.Table, is_carrier: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first reason that an image has."""
    differs = pc.fill_null(pc.not_equal(images["label"], images["predicted"]), False)
    is_unknown = pc.and_(pc.is_null(images["label"]), pc.is_valid(images["label_name"]))
    reasons = [np.asarray(differs), np.asarray(is_unknown), is_carrier]
    return np.select(reasons, [DIFFERS, UNKNOWN, CARRIER], NOTHING)


def _reason(rank: int, held: list[Carrier]) -> str | None:
    """All reasons, as a column has them."""
    if rank == NOTHING:
        return None
    both = rank != CARRIER and any(carrier.cue.is_accused for carrier in held)
    return f"{REASONS[rank]}; {REASONS[CARRIER]}" if both else REASONS[rank]


def _told(carrier: Carrier) -> str:
    return f"{carrier.cue.name} ({carrier.cue.verdict})"


def _places(found: Found | None, rank: NDArray[np.int64], images: pa.Table) -> pa.Array:
    """Carriers go by their cue's severity and their likeness; the others by what follows."""
    order: dict[int, int] = {}
    for place, carrier in enumerate(() if found is None else found.carriers):
        order.setdefault(carrier.row, place)
    rows = images["row"].to_pylist()
    places = [order[row] if r == CARRIER else 0 for row, r in zip(rows, rank, strict=True)]
    return pa.array(places, pa.int64())


def _label_probability(table: pa.Table, images: pa.Table) -> pa.Array:
    """The probability of each image's label, where one of its maps is of it: else null."""
    of_label = table.filter(pc.fill_null(pc.equal(table["target"], table["label"]), False))
    rows = of_label["row"].to_pylist()
    known = dict(zip(rows, of_label["target_probability"].to_pylist(), strict=True))
    return pa.array([known.get(row) for row in images["row"].to_pylist()], pa.float32())
