"""Compare ReciproCAM's conventions on the models of benchmarks/planted_models.py.

    python benchmarks/conventions.py DIR [--models NAME ...] [--carriers N] [--clean N] [--reuse]

Every map explains the predicted class. Measured are:

- on pictures that a model calls their class with the plant and another class without it: confounder
  sensitivity, |top & plant| / min(|top|, |plant|) of the 6 most salient of 64 tokens (10%) and the
  tokens that the plant covers by at least a quarter; and whether the peak lies in the plant;
- on pictures without any plant that are classified correctly: the area under the probability of the
  predicted class while patches appear, the most salient first, on the picture's mean colour
  (insertion), and while they vanish into it (deletion), by the trapezoidal rule over STEPS.

A cell is a mean and 1.96 standard errors; an arrow marks a 95% bootstrap interval of the paired
difference to the default that excludes zero: up is better, down is worse. The cost is measured, in
plain forward passes of a batch of BATCH by the library's cheapest exact form; a mean of maps costs
the sum of its parts. Models this narrow pay more for small operations than a ViT-S does. Smoothing
renormalises the kernel at the borders.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from convention_maps import (
    DEFAULT,
    OCCLUSION,
    RANDOM,
    TOKENS,
    Seconds,
    conventions,
    load_trained,
    partly,
    saliencies,
)
from planted_models import BUILDS, CLASSES, FRAMED, PATCH, PLANTS, SIZE, pictures_of, sample
from rich.console import Console
from torch import Tensor, nn
from train_demo import predicted

from explainer import VitClassifier

TOP = 6  # a tenth of the tokens
STEPS = (0, 4, 8, 16, 24, 32, 48, 64)
COVERED = 0.25  # of a token, to be a plant's
CANDIDATES, BATCH, RESAMPLES = 240, 20, 2_000
LOWER_IS_BETTER = ("deletion",)
GROUPS = ("sens.", "peak", "insertion", "deletion")
out = Console(width=400, highlight=False)


@dataclass(frozen=True)
class Carriers:
    """Pictures uint8 [N, 3, SIZE, SIZE] with a plant, without it, and which tokens it covers."""

    label: int
    pixels: Tensor
    bare: Tensor
    plant: Tensor


Results = dict[tuple[str, str], np.ndarray]  # (convention, metric) -> a number an image


def main() -> None:
    """Draw once, measure and print a table for each model, then counts over all of them."""
    parser = argparse.ArgumentParser(description="Compare ReciproCAM's conventions.")
    parser.add_argument("models_dir", type=Path)
    parser.add_argument("--models", nargs="+", default=list(BUILDS))
    parser.add_argument("--carriers", type=int, default=80)
    parser.add_argument("--clean", type=int, default=100)
    parser.add_argument("--reuse", action="store_true", help="numbers of models measured before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plants = {plant: carriers(name, range(CANDIDATES)) for plant, name in PLANTS.items()}
    names = tuple(name for name in CLASSES if name != FRAMED)  # without its frame it is no class
    clean = pictures_of(names, range(CANDIDATES // 4), planted=False)
    every: list[Results] = []
    for name in options.models:
        stored = options.models_dir / name / "conventions.npz"
        if options.reuse and stored.exists():
            every.append(read(stored))
            continue
        torch.manual_seed(0)
        model, seconds = load_trained(options.models_dir / name), defaultdict(float)
        found = defaultdict(list)
        for plant, each in plants.items():
            for key, values in measure_plant(model, plant, each, options.carriers, seconds):
                found[key].append(values)
        for key, values in measure_clean(model, *clean, options.clean, seconds):
            found[key].append(values)
        every.append({key: torch.cat(parts).numpy() for key, parts in found.items()})
        np.savez(stored, **{" | ".join(key): values for key, values in every[-1].items()})
        out.print(f"\n### {name}\n\n" + "\n".join(table(model, every[-1], seconds)))
    out.print("\n### All models\n\n" + "\n".join(counts(every)))


def read(stored: Path) -> Results:
    """What an earlier run measured."""
    with np.load(stored) as arrays:
        return {tuple(key.split(" | ")): arrays[key] for key in arrays}


def carriers(name: str, seeds: range) -> Carriers:
    """The same pictures of a class with and without its plant."""
    pixels, bare = (pictures_of((name,), seeds, planted)[0] for planted in (True, False))
    covered = torch.zeros(len(seeds), SIZE, SIZE)
    for canvas, seed in zip(covered, seeds, strict=True):
        for r in sample(name, seed, True).plant:
            canvas[r.top : r.top + r.height, r.left : r.left + r.width] = 1
    plant = F.avg_pool2d(covered, PATCH) >= COVERED
    return Carriers(CLASSES.index(name), pixels, bare, plant.flatten(1))


def measure_plant(
    model: VitClassifier, plant: str, each: Carriers, most: int, seconds: Seconds
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Sensitivity and peak on the pictures whose prediction the plant decides."""
    fooled = predicted(model.vit, each.pixels) == each.label
    fooled &= predicted(model.vit, each.bare) != each.label
    for rows in fooled.nonzero()[:most, 0].split(BATCH):
        least = each.plant[rows].sum(1).clamp_max(TOP)
        for name, saliency in saliencies(model, each.pixels[rows], seconds):
            inside = each.plant[rows].gather(1, saliency.topk(TOP).indices)
            yield (name, f"{plant} sens."), inside.sum(1) / least
            yield (name, f"{plant} peak"), inside[:, 0].float()


def measure_clean(
    model: VitClassifier, pixels: Tensor, labels: Tensor, most: int, seconds: Seconds
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Insertion and deletion on a random choice of the pictures that are classified correctly."""
    correct = (predicted(model.vit, pixels) == labels).nonzero()[:, 0]
    for rows in correct[torch.randperm(len(correct))[:most]].split(BATCH):
        for name, saliency in saliencies(model, pixels[rows], seconds):
            insertion, deletion = curves(model.vit, pixels[rows], saliency)
            yield (name, "insertion"), insertion
            yield (name, "deletion"), deletion


@torch.inference_mode()
def curves(vit: nn.Module, crops: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Areas under the insertion and the deletion curve, one an image."""
    target = predicted(vit, crops)[:, None]
    rank = saliency.argsort(dim=1, descending=True, stable=True).argsort(1)
    share = torch.tensor(STEPS) / TOKENS**2

    def probability(keep: Tensor) -> Tensor:
        return vit(partly(crops, keep)).softmax(1).gather(1, target)[:, 0]

    grown = [probability(rank < step) for step in STEPS]
    shrunk = [probability(rank >= step) for step in STEPS[1:-1]]
    deletion = torch.stack([grown[-1], *shrunk, grown[0]], 1)
    return torch.trapezoid(torch.stack(grown, 1), share), torch.trapezoid(deletion, share)


def table(model: VitClassifier, results: Results, seconds: Seconds) -> list[str]:
    """A Markdown table of one model, and how many images each metric rests on."""
    metrics = list(dict.fromkeys(metric for _, metric in results))
    sizes = ", ".join(f"{name} {len(results[DEFAULT.title, name])}" for name in metrics)
    lines = [f"Images: {sizes}.", "", row(["convention", *metrics, "cost"])]
    lines.append(row(["---"] * (len(metrics) + 2)))
    for each in (*conventions(model), RANDOM, OCCLUSION):
        cost = sum(seconds[part] for part in each.parts) / seconds["forward"]
        cost = TOKENS**2 if each is OCCLUSION else cost
        cells = [cell(results, each.title, metric) for metric in metrics]
        lines.append(row([each.title, *cells, f"{cost:.1f}"]))
    return lines


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(results: Results, title: str, metric: str) -> str:
    """Mean, 1.96 standard errors, and whether it differs from the default."""
    values = results[title, metric]
    spread = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.2f} ±{spread:.2f}{('', ' ↑', ' ↓')[verdict(results, title, metric)]}"


def verdict(results: Results, title: str, metric: str) -> int:
    """1 where better than the default, -1 where worse, 0 where the interval holds zero."""
    difference = results[title, metric] - results[DEFAULT.title, metric]
    difference = -difference if metric in LOWER_IS_BETTER else difference
    drawn = np.random.default_rng(0).integers(len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
    return int(low > 0) - int(high < 0)


def counts(every: list[Results]) -> list[str]:
    """Means over models and plants, and how often a convention differs from the default."""
    lines = [row(["convention", *GROUPS, "better", "worse", "of"]), row(["---"] * 8)]
    for name in (name for name in titles(every[0]) if all(name in titles(r) for r in every)):
        found = [(r, metric) for r in every for title, metric in r if title == name]
        means = [np.mean([r[name, m].mean() for r, m in found if m.endswith(g)]) for g in GROUPS]
        verdicts = [verdict(r, name, metric) for r, metric in found]
        tally = [verdicts.count(1), verdicts.count(-1), len(verdicts)]
        lines.append(row([name, *(f"{mean:.2f}" for mean in means), *map(str, tally)]))
    return lines


def titles(results: Results) -> list[str]:
    return list(dict.fromkeys(title for title, _ in results))


if __name__ == "__main__":
    main()
