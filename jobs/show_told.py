"""What is told of an image and its map: a table, and the overlay in a terminal's characters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.table import Table
from rich.text import Text

from explainer.plot import overlay
from explainer.preprocess import Box
from jobs import heatmaps
from jobs.finished import Finished
from storage.shown import printable

SCORES = {"log_odds": "log-odds", "logit": "logit"}
COLOURFUL = ("truecolor", "256")


@dataclass(frozen=True)
class Carried:
    """A finding whose cue an image carries: an audit's name, and a row of its findings."""

    audit: str
    finding: Mapping[str, Any]

    def __str__(self) -> str:
        of = self.finding
        where = "at one place" if of["is_fixed"] else "anywhere"
        return (
            f"{of['target_name']}: {of['verdict']}, {of['kind']} {where} "
            f"(cue {of['cue']} of audit {self.audit})"
        )


@dataclass(frozen=True)
class Explained:
    """A row of `explanations` that has a map, its run, and what its image carries; None where no
    audit looked."""

    row: Mapping[str, Any]
    finished: Finished
    carried: Sequence[Carried] | None

    @property
    def map(self) -> Float[np.ndarray, "rows columns"]:
        return np.array(self.row["saliency"], np.float64).reshape(self.finished.grid)

    def seen(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Box:
        """The part of the image's pixels that the model has seen."""
        return self.finished.preprocessing.seen(*pixels.shape[:2])


def caption(explained: Explained) -> list[str]:
    """The lines above a picture."""
    row = explained.row
    return [
        row["image_id"],
        f"label {_label(row)}; predicted {_predicted(row)}",
        f"explained: {_target(row)}; scale: {_score_name(explained)}",
    ]


def ends(explained: Explained) -> tuple[str, str]:
    """The scores at the ends of a map's scale, with as many decimals as tell them apart."""
    least, largest = explained.row["score_min"], explained.row["score_max"]
    span = largest - least
    decimals = min(max(2 - math.floor(math.log10(span)), 0), 9) if span > 0 else 2
    return f"{least:.{decimals}f}", f"{largest:.{decimals}f}"


def tell_failed(console: Console, row: Mapping[str, Any]) -> None:
    """Say why an image has no map."""
    _tell(
        console,
        row,
        {
            "label": _label(row),
            "status": f"{row['status']}, so it has no map",
            "error": row["error"] or "",
        },
    )


def tell_map(
    console: Console,
    explained: Explained,
    pixels: UInt8[np.ndarray, "height width 3"] | None,
    picture: str,
) -> None:
    """Say what the row says, and draw the overlay, or the map where there are no colours or no
    pixels; `picture` says where the PNG is, or why there is none."""
    row = explained.row
    least, largest = ends(explained)
    rows, columns = explained.finished.grid
    even = 1 - max(rows - 2, 0) * max(columns - 2, 0) / (rows * columns)
    _tell(
        console,
        row,
        {
            "label": _label(row),
            "predicted": _predicted(row),
            "explained": _target(row),
            "score": f"{_score_name(explained)} {least} to {largest}",
            "peak": f"row {row['peak_row']}, column {row['peak_col']} of {rows} x {columns} cells",
            "border mass": f"{row['border_mass']:.2f} ({even:.2f} if it were even)",
            "findings": _findings(explained.carried),
        },
    )
    # A line of its own, which is not folded: it is to be copied.
    console.print(Text(printable(f"picture: {picture}")))
    colourful = console.is_terminal and console.color_system in COLOURFUL and not console.no_color
    if pixels is None or not colourful:
        console.print(heatmaps.terminal(explained.map))
        return
    image = overlay(pixels, explained.map, explained.seen(pixels))
    console.print(heatmaps.blocks(image, console.width, max(console.height - 1, 1)))


def _tell(
    console: Console, row: Mapping[str, Any], lines: Mapping[str, str | Sequence[str]]
) -> None:
    console.print(Text(printable(f"{row['image_id']} (row {row['row']})"), "bold"))
    table = Table(show_header=False)
    for name, value in lines.items():
        told = [value] if isinstance(value, str) else value
        table.add_row(name, Text("\n".join(map(printable, told))))
    console.print(table)


def _label(row: Mapping[str, Any]) -> str:
    if row["label_name"] is None:
        return "none"
    return f"{row['label_name']}{'' if row['label'] is not None else ', no class of the model'}"


def _predicted(row: Mapping[str, Any]) -> str:
    verdict = ""
    if row["label"] is not None:
        verdict = ", right" if row["label"] == row["predicted"] else ", wrong"
    return f"{row['predicted_name']}, probability {row['probability']:.3f}{verdict}"


def _target(row: Mapping[str, Any]) -> str:
    kind = row["target_kind"]
    why = f"{kind}, number {row['target_rank'] + 1}" if kind in ("top", "all") else kind
    return f"{row['target_name']} ({why}), probability {row['target_probability']:.3f}"


def _score_name(explained: Explained) -> str:
    method = explained.finished.run.description["fingerprint_of"]["method"]
    return SCORES.get(method.get("score", ""), "score")


def _findings(carried: Sequence[Carried] | None) -> str | Sequence[str]:
    if carried is None:
        return "not audited"
    return [str(each) for each in carried] or "none: it carries no cue, or no audit looked at it"
