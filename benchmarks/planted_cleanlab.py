"""cleanlab's check for spurious correlations on the pictures of benchmarks/planted.py: a baseline.

    python benchmarks/planted_cleanlab.py DIR [--models 32 33]

The check (cleanlab 2.9, Datalab's `spurious_correlations`) scores each picture by properties (dark,
light, blurry, ...; CleanVision) and tells how well a property alone predicts the labels of the
whole dataset: 1 not at all, 0 always; below 0.3 it reports the property. It names no class. To rank
classes the same function is asked of each class and as many pictures of the others, and the class's
score is its lowest one. Needs the audits of the models, for which plants took.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from cleanlab.datalab.internal.spurious_correlation import SpuriousCorrelations
from cleanvision import Imagelab
from datasets import Dataset, Features, Image
from numpy.random import default_rng
from numpy.typing import NDArray
from rich.console import Console

# In place of this script's folder, whose explainer.py would hide the package.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.planted_cells import AUDITED, HELD_OUT, cells_of, drawn
from benchmarks.planted_pictures import CLASSES
from explainer.audit.statistics import auc

REPORTED = 0.3
PROPERTIES = ("dark", "light", "low_information", "grayscale", "blurry")
out = Console(soft_wrap=True, highlight=False)


def main() -> None:
    """Ask cleanlab of each model's pictures, and rank the classes."""
    parser = argparse.ArgumentParser(description="cleanlab's spurious correlations, as a baseline.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", type=int, default=list(HELD_OUT))
    options = parser.parse_args()
    of_plants: list[float] = []
    of_clean: list[float] = []
    for number in options.models:
        scores, labels = property_scores(number), np.arange(len(CLASSES)).repeat(AUDITED)
        whole = correlations(scores, labels)
        reported = [name for name, score in whole.items() if score < REPORTED]
        lowest = min(whole, key=lambda name: whole[name])
        out.print(
            f"model {number}: {len(reported)} properties reported; the lowest score is "
            f"{whole[lowest]:.2f} ({lowest})"
        )
        for row in json.loads((options.out / f"audit-{number}.json").read_text()):
            score = of_class(row["target"], scores, labels)
            if row.get("took"):
                of_plants.append(1 - score)
            elif not row["plant"]:
                of_clean.append(1 - score)
    area = auc(np.array(of_plants), np.array(of_clean))
    out.print(
        f"classes ranked by it: AUROC {area:.3f} over {len(of_plants)} plants that took and "
        f"{len(of_clean)} clean classes"
    )


def property_scores(number: int) -> pd.DataFrame:
    """CleanVision's scores of the pictures that the audit of a model reads, a row a picture."""
    cells, seeds = cells_of(number), range(AUDITED)
    pixels = [
        sample.pixels.transpose(1, 2, 0)
        for index in range(len(CLASSES))
        for sample in drawn(index, seeds, cells.get(index))
    ]
    dataset = Dataset.from_dict({"image": pixels}, features=Features({"image": Image()}))
    lab = Imagelab(hf_dataset=dataset, image_key="image")
    lab.find_issues({name: {} for name in PROPERTIES}, n_jobs=1, verbose=False)
    return lab.issues[[f"{name}_score" for name in PROPERTIES]]


def correlations(scores: pd.DataFrame, labels: NDArray[np.int64]) -> dict[str, float]:
    """What cleanlab says of each property and some labels."""
    found = SpuriousCorrelations(scores, labels).calculate_correlations()
    return dict(zip(found["property"], found["score"], strict=True))


def of_class(target: int, scores: pd.DataFrame, labels: NDArray[np.int64]) -> float:
    """The lowest score where a class is told from as many pictures of all others."""
    mine, others = np.flatnonzero(labels == target), np.flatnonzero(labels != target)
    rows = np.concatenate([mine, default_rng(target).choice(others, len(mine), replace=False)])
    return min(correlations(scores.iloc[rows], (labels[rows] == target).astype(int)).values())


if __name__ == "__main__":
    main()
