"""What came of benchmarks/planted.py: every cell, totals, decoys, cost, and map statistics alone.

    python benchmarks/planted_report.py DIR

A class is flagged where its verdict is `shortcut`, `compact cue` or `context`. Totals are over the
plants that took and over all; clean classes are those without a plant of all planted models, icons
left out, which are decoys. A class's score is the lower end of the largest lift of its cues.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.planted import CLEAN, EVERYWHERE, PLANTED, TEST_PER_CLASS, UNSEEN
from benchmarks.planted_pictures import CLASSES, ICONS, LOCAL
from explainer.audit.significance import wilson
from explainer.audit.statistics import auc, largest_z, summary

# Rules and thresholds were fixed on the demo's model and on the first two of these.
HELD_OUT = PLANTED[2:]
FLAGGED = ("shortcut", "compact cue: look at it", "context")
out = Console(soft_wrap=True, highlight=False)
Row = dict[str, Any]


def main() -> None:
    """Print all tables as Markdown."""
    parser = argparse.ArgumentParser(description="Report on planted shortcuts.")
    parser.add_argument("out", type=Path)
    folder = parser.parse_args().out
    found = {n: read(folder, n) for n in range(UNSEEN + 1) if (folder / f"audit-{n}.json").exists()}
    planted = [row for number in PLANTED if number in found for row in found[number]]
    plants = [row for row in planted if row["plant"]]
    clean = [row for row in planted if not row["plant"] and not is_icon(row)]
    print_cells(plants)
    for name, models in (("all models", PLANTED), ("models not looked at before", HELD_OUT)):
        out.print(f"\n{name}:")
        print_totals(
            [row for row in plants if row["model"] in models],
            [row for row in clean if row["model"] in models],
        )
    print_decoys(found)
    print_cost(planted)
    print_baselines(folder, [number for number in PLANTED if number in found], planted)


def read(folder: Path, number: int) -> list[Row]:
    """The classes of one audit, each with its score."""
    rows: list[Row] = json.loads((folder / f"audit-{number}.json").read_text())
    for row in rows:
        lifts = [cue["lift"]["low"] for cue in row["cues"] if cue["lift"]]
        row["score"] = max(lifts, default=-1.0)
        row["flagged"] = row["verdict"] in FLAGGED
    return rows


def is_icon(row: Row) -> bool:
    return CLASSES[row["target"]] in ICONS


def print_cells(plants: list[Row]) -> None:
    """One line a plant."""
    heads = ["artefact", "size", "rate", "accuracy with, without", "took", "verdict", "lift"]
    print_heads([*heads, "F1", "IoU", "map"])
    for row in sorted(plants, key=lambda r: (*r["plant"].values(), r["rate"])):
        cue, accuracy = next(iter(row["cues"]), None), row["accuracy"]
        lift = cue["lift"] if cue else None
        cells = [
            row["plant"]["kind"],
            row["plant"]["size"],
            f"{row['rate']:.0%}",
            f"{accuracy['with']:.2f}, {accuracy['without']:.2f}",
            "yes" if row["took"] else "no",
            row["verdict"],
            f"{lift['value']:.2f} [{lift['low']:.2f}, {lift['high']:.2f}]" if lift else "",
            f"{cue['f1']:.2f}" if cue else "",
            f"{cue['iou']:.2f}" if cue and cue["iou"] is not None else "",
            f"{row['top']:.2f}" if row["top"] is not None else "",
        ]
        out.print(f"| {' | '.join(cells)} |")


def print_totals(plants: list[Row], clean: list[Row]) -> None:
    """Detection over classes, and carriers and regions of what was found."""
    heads = ["over", "plants", "AUROC", "average precision", "recall at k"]
    print_heads([*heads, "flagged", "as shortcut"])
    chosen: dict[str, Callable[[Row], bool]] = {
        "took": lambda row: row["took"],
        "took, rate 10% and more": lambda row: row["took"] and row["rate"] >= 0.1,
        "took, tint left out": lambda row: row["took"] and row["plant"]["kind"] != "tint",
        "took, tint left out, rate 10% and more": lambda row: (
            row["took"] and row["plant"]["kind"] != "tint" and row["rate"] >= 0.1
        ),
        "all": lambda _: True,
    }
    for name, choose in chosen.items():
        mine = [row for row in plants if choose(row)]
        positive, negative = (np.array([row["score"] for row in rows]) for rows in (mine, clean))
        cells = [
            name,
            str(len(mine)),
            f"{auc(positive, negative):.3f}",
            f"{average_precision(positive, negative):.3f}",
            f"{recall_at_k(positive, negative):.3f}",
            share([row["flagged"] for row in mine]),
            share([row["verdict"] == "shortcut" for row in mine]),
        ]
        out.print(f"| {' | '.join(cells)} |")
    out.print(f"\nfalse alarms on clean classes: {share([row['flagged'] for row in clean])}, ")
    out.print(f"as shortcut {share([row['verdict'] == 'shortcut' for row in clean])}")
    local = [
        row["cues"][0]
        for row in plants
        if row["took"] and row["plant"]["kind"] in LOCAL and row["rate"] >= 0.25 and row["cues"]
    ]
    if local:
        overlaps = [cue["iou"] for cue in local if cue["iou"] is not None]
        out.print(
            f"local artefacts that took, rate 25% and more, with a cue: {len(local)}; carriers' F1 "
            f"mean {np.mean([cue['f1'] for cue in local]):.2f}, median "
            f"{np.median([cue['f1'] for cue in local]):.2f}; IoU mean {np.mean(overlaps):.2f}, "
            f"median {np.median(overlaps):.2f}"
        )
    missed = [row for row in plants if row["took"] and row["top"] is not None and row["top"] < 0.1]
    out.print(
        f"plants that took and that maps miss (share of the top tenth below 0.1): {len(missed)}, "
        f"of them flagged {sum(row['flagged'] for row in missed)}"
    )


def print_decoys(found: dict[int, list[Row]]) -> None:
    """What must not be called a shortcut."""
    print_heads(["decoy", "classes", "verdicts"])
    decoys = {
        "no plant in training": found.get(CLEAN, []),
        "the same watermark on 30% of all classes": found.get(EVERYWHERE, []),
        "plants that the model never saw": [r for r in found.get(UNSEEN, []) if r["plant"]],
    }
    named = {name: [r for r in rows if not is_icon(r)] for name, rows in decoys.items()}
    named["a small rigid object"] = [r for rows in found.values() for r in rows if is_icon(r)]
    for name, rows in named.items():
        counts = Counter(row["verdict"] for row in rows)
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        out.print(f"| {name} | {len(rows)} | {told} |")


def print_cost(planted: list[Row]) -> None:
    """Images through the model, and time."""
    passes = np.array([row["passes"] for row in planted])
    of_clean = np.array([row["passes"] for row in planted if not row["plant"]])
    seconds = np.array([row["seconds"] for row in planted])
    out.print(
        f"\n{len(planted)} classes: {passes.mean():.0f} passes a class on average (median "
        f"{np.median(passes):.0f}, at most {passes.max()}; clean ones {of_clean.mean():.0f}), "
        f"{seconds.mean():.1f} s on one core"
    )


def print_baselines(folder: Path, numbers: list[int], planted: list[Row]) -> None:
    """How well statistics of maps alone rank the same classes."""
    scores: dict[str, list[float]] = {"largest z": [], "persistence": [], "bimodality": []}
    for number in numbers:
        stored = np.load(folder / f"maps-{number}.npz")
        maps = stored["saliency"].astype(np.float32)
        labels = np.arange(len(maps)) // TEST_PER_CLASS
        for index in range(len(CLASSES)):
            mine, others = maps[labels == index], maps[labels != index][::20]
            shares = [
                m.reshape(len(m), -1) / m.sum((1, 2))[:, None].clip(1e-9) for m in (mine, others)
            ]
            described = summary(mine)
            scores["largest z"].append(float(largest_z(*shares, seed=0)[0].max()))
            scores["persistence"].append(described.persistence)
            scores["bimodality"].append(described.bimodality)
    print_heads(["ranked by", "AUROC over plants that took", "average precision"])
    took = np.array([bool(row["plant"] and row["took"]) for row in planted])
    clean = np.array([not row["plant"] and not is_icon(row) for row in planted])
    ranked = {"the audit": [row["score"] for row in planted], **scores}
    for name, values in ranked.items():
        positive, negative = np.array(values)[took], np.array(values)[clean]
        out.print(
            f"| {name} | {auc(positive, negative):.3f} | "
            f"{average_precision(positive, negative):.3f} |"
        )


def print_heads(heads: list[str]) -> None:
    out.print(f"\n| {' | '.join(heads)} |")
    out.print("|---" * len(heads) + "|")


def average_precision(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Mean precision at each positive; ties count as if negatives came first."""
    precisions = [
        (positive >= score).sum() / ((positive >= score).sum() + (negative >= score).sum())
        for score in positive
    ]
    return float(np.mean(precisions)) if precisions else 0.0


def recall_at_k(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Share of the positives among as many best scores, ties in favour of negatives."""
    if not len(positive):
        return 0.0
    ahead = [(negative >= score).sum() + (positive > score).sum() for score in positive]
    return float(np.mean(np.array(ahead) < len(positive)))


def share(outcomes: list[bool]) -> str:
    """A share with its counts and Wilson's interval."""
    got = wilson(sum(outcomes), len(outcomes))
    return f"{sum(outcomes)} of {len(outcomes)} ({got.value:.2f} [{got.low:.2f}, {got.high:.2f}])"


if __name__ == "__main__":
    main()
