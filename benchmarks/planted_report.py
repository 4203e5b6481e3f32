"""What came of benchmarks/planted.py: every cell, totals, decoys, cost, and map statistics alone.

    python benchmarks/planted_report.py DIR

A class is flagged where its verdict is `shortcut`, `compact cue` or `context`. Totals are over the
plants that took and over all; clean classes are those without a plant of all planted models, icons
left out, which are decoys. A class's score is the place that the audit gives it: first what it
flags, then the rank of its findings (explainer/audit/verdict.py).
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

from benchmarks.planted_cells import (
    CLEAN,
    EVERYWHERE,
    HELD_OUT,
    LOOKED_AT,
    PLANTED,
    UNSEEN,
    WITH_NEW_KINDS,
)
from benchmarks.planted_pictures import CLASSES, ICONS, LOCAL
from explainer.audit.significance import wilson
from explainer.audit.statistics import as_shares, auc, largest_z, summary
from explainer.audit.verdicts import ACCUSED

NEIGHBOURS, MOST_CLUSTERS = 10, 8
BASELINES = {
    "the audit": "score",
    "largest z of the maps": "largest z",
    "persistence of the maps": "persistence",
    "bimodality of the maps": "bimodality",
    "clusters of maps (SpRAy)": "clusters",
    "properties of pixels": "pixels",
}
out = Console(soft_wrap=True, highlight=False)
Row = dict[str, Any]


def main() -> None:
    """Print all tables as Markdown."""
    parser = argparse.ArgumentParser(description="Report on planted shortcuts.")
    parser.add_argument("out", type=Path)
    folder = parser.parse_args().out
    every = (*PLANTED, CLEAN, EVERYWHERE, UNSEEN)
    found = {n: read(folder, n) for n in every if (folder / f"audit-{n}.json").exists()}
    planted = [row for number in PLANTED if number in found for row in found[number]]
    for number in PLANTED:
        if number in found:
            describe(folder, number, found[number])
    plants = [row for row in planted if row["plant"]]
    clean = [row for row in planted if not row["plant"] and not is_icon(row)]
    print_cells(plants)
    groups = {
        "models that rules were fixed on": LOOKED_AT,
        "held out": HELD_OUT,
        "kinds that nothing was fixed on": WITH_NEW_KINDS,
    }
    for name, models in groups.items():
        if not any(number in found for number in models):
            continue
        out.print(f"\n{name}:")
        print_totals(
            [row for row in plants if row["model"] in models],
            [row for row in clean if row["model"] in models],
        )
        print_cost([row for row in planted if row["model"] in models])
    print_decoys(found)
    print_baselines(planted)


def read(folder: Path, number: int) -> list[Row]:
    """The classes of one audit, and whether each is flagged."""
    rows: list[Row] = json.loads((folder / f"audit-{number}.json").read_text())
    for row in rows:
        row["flagged"] = row["verdict"] in ACCUSED
    return rows


def is_icon(row: Row) -> bool:
    return CLASSES[row["target"]] in ICONS


def print_cells(plants: list[Row]) -> None:
    """One line a plant."""
    heads = ["artefact", "size", "rate", "accuracy with, without", "took", "verdict", "drop"]
    print_heads([*heads, "lift", "F1", "IoU", "map", "pixels"])
    for row in sorted(plants, key=lambda r: (*r["plant"].values(), r["rate"])):
        cue, accuracy = next(iter(row["cues"]), None), row["accuracy"]
        lift, drop = (cue["lift"], cue["drop"]) if cue else (None, None)
        cells = [
            row["plant"]["kind"],
            row["plant"]["size"],
            f"{row['rate']:.0%}",
            f"{accuracy['with']:.2f}, {accuracy['without']:.2f}",
            "yes" if row["took"] else "no",
            row["verdict"],
            f"{drop['value']:.2f} [{drop['low']:.2f}, {drop['high']:.2f}]" if drop else "",
            f"{lift['value']:.2f} [{lift['low']:.2f}, {lift['high']:.2f}]" if lift else "",
            f"{cue['f1']:.2f}" if cue else "",
            f"{cue['iou']:.2f}" if cue and cue["iou"] is not None else "",
            f"{row['top']:.2f}" if row["top"] is not None else "",
            f"{row['pixels']:.2f}",
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
    """Images through the model, and time: of all classes, for which those that were audited stand.

    All that hold a plant were audited, and of a model's others so many at random.
    """
    kinds = [(row["model"], bool(row["plant"])) for row in planted]
    plants = Counter(model for model, holds_plant in kinds if holds_plant)
    weights = np.array(
        [
            1.0 if holds_plant else (len(CLASSES) - plants[model]) / kinds.count((model, False))
            for model, holds_plant in kinds
        ]
    )
    passes, seconds = (np.array([row[key] for row in planted]) for key in ("passes", "seconds"))
    is_planted = np.array([each for _, each in kinds])
    out.print(
        f"\n{len(planted)} classes, which stand for {weights.sum():.0f}: "
        f"{np.average(passes, weights=weights):.0f} passes a class on average (at most "
        f"{passes.max()}; with a plant {passes[is_planted].mean():.0f}, without "
        f"{passes[~is_planted].mean():.0f}), {np.average(seconds, weights=weights):.1f} s of a core"
    )


def print_baselines(planted: list[Row]) -> None:
    """How well statistics of maps, clusters of maps and properties of pixels rank the classes."""
    print_heads(["ranked by", "AUROC over plants that took", "average precision"])
    took = np.array([bool(row["plant"] and row["took"]) for row in planted])
    clean = np.array([not row["plant"] and not is_icon(row) for row in planted])
    for name, key in BASELINES.items():
        values = np.array([row[key] for row in planted])
        positive, negative = values[took], values[clean]
        out.print(
            f"| {name} | {auc(positive, negative):.3f} | "
            f"{average_precision(positive, negative):.3f} |"
        )


def describe(folder: Path, number: int, rows: list[Row]) -> None:
    """Note beside each class of a model what its maps and its pixels alone say of it."""
    stored = np.load(folder / f"maps-{number}.npz")
    maps, pixels = stored["saliency"].astype(np.float32), stored["properties"]
    labels = np.arange(len(CLASSES)).repeat(len(maps) // len(CLASSES))
    for row in rows:
        is_mine = labels == row["target"]
        mine, others = as_shares(maps[is_mine]), as_shares(maps[~is_mine][::20])
        described = summary(maps[is_mine])
        row["largest z"] = float(largest_z(mine, others, seed=0)[0].max())
        row["persistence"], row["bimodality"] = described.persistence, described.bimodality
        row["clusters"] = eigengap(mine)
        aucs = [auc(of[is_mine], of[~is_mine]) for of in pixels.T]
        row["pixels"] = 0.5 + max(abs(each - 0.5) for each in aucs)


def eigengap(maps: NDArray[np.float64]) -> float:
    """How clearly maps fall into clusters: the largest gap of the Laplacian's small eigenvalues.

    SpRAy's spectral analysis (Lapuschkin et al., Nature Communications 10:1096, 2019): affinity of
    nearest neighbours, symmetric, normalised Laplacian.
    """
    distances = np.linalg.norm(maps[:, None] - maps[None], axis=2)
    near = np.zeros_like(distances)
    nearest = np.argsort(distances, axis=1)[:, 1 : NEIGHBOURS + 1]
    np.put_along_axis(near, nearest, 1.0, axis=1)
    affinity = np.maximum(near, near.T)
    scale = 1 / np.sqrt(affinity.sum(1))
    laplacian = np.eye(len(maps)) - scale[:, None] * affinity * scale[None]
    return float(np.diff(np.linalg.eigvalsh(laplacian)[: MOST_CLUSTERS + 1])[1:].max())


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
