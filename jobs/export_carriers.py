"""`saliency export --to carriers`: for each cue a plain list of the files that carry it.

lists/00006-pentagon-cue0-shortcut.txt   a uri a line, most like the cue first
carriers.csv                             the same images with all that is known of them
findings.csv                             one line a list: its cue, verdict and reason
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from jobs.export_findings import Carrier, Cue
from jobs.export_plan import Exported, Written
from jobs.export_rows import first_of_images, read_rows
from jobs.export_tables import csv_bytes, rows_at
from storage.names import file_name
from storage.shown import printable

OF_IMAGE = ("image_id", "uri", "label", "label_name", "predicted", "predicted_name", "probability")
OF_FINDING = (
    *("target", "target_name", "cue", "verdict", "severity", "kind", "origin", "is_fixed"),
    *("carriers", "carrier_share", "lift", "accuracy_without", "reason"),
)


def write(exported: Exported, console: Console) -> Written:
    """Write the lists, and the two tables that say what they are."""
    found, folder = exported.audited, exported.folder
    images = _images(exported, console)
    of_cue: dict[tuple[int, int], list[Carrier]] = {cue.key: [] for cue in found.cues}
    for carrier in found.carriers:
        of_cue[carrier.cue.key].append(carrier)
    files, findings = [], []
    for cue in found.cues:
        carriers = of_cue[cue.key]
        name = list_name(cue) if carriers else None
        if name is not None:
            files.append(folder.create(name, lines(carriers, images)))
        findings.append([name, *(cue.row[column] for column in OF_FINDING)])
    rows = [
        [list_name(carrier.cue), carrier.row, carrier.likeness, carrier.cue.row["verdict"]]
        + [images[carrier.row][column] for column in OF_IMAGE]
        for carrier in found.carriers
    ]
    header = ["list", "row", "likeness", "verdict", *OF_IMAGE]
    files.append(folder.create("carriers.csv", csv_bytes(header, rows)))
    files.append(folder.create("findings.csv", csv_bytes(["list", *OF_FINDING], findings)))
    return Written(files, {"cues": len(found.cues), "carriers": len(found.carriers)})


def list_name(cue: Cue) -> str:
    """Where a cue's list is, below the export."""
    target, number = cue.key
    name = file_name(f"{target:05d}-{cue.row['target_name']}")
    return f"lists/{name}-cue{number}-{cue.verdict}.txt"


def _images(exported: Exported, console: Console) -> Mapping[int, Mapping[str, Any]]:
    """What the run says of each carrier, by its row."""
    images: dict[int, Mapping[str, Any]] = {}
    for table in read_rows(exported, console):
        chosen = rows_at(first_of_images(table), exported.audited.by_row)
        images |= {row["row"]: row for row in chosen.select(["row", *OF_IMAGE]).to_pylist()}
    return images


def lines(carriers: Sequence[Carrier], images: Mapping[int, Mapping[str, Any]]) -> bytes:
    r"""Uris, one a line; where several images lie in one file, or have no uri, their image_ids.

    A line end within one is written as \n: a list has as many lines as images.
    """
    uris = [images[carrier.row]["uri"] for carrier in carriers]
    if None in uris or len(set(uris)) < len(uris):
        uris = [images[carrier.row]["image_id"] for carrier in carriers]
    return "".join(f"{printable(uri)}\n" for uri in uris).encode()
