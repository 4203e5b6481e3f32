"""Images a second of judging methods, as `saliency evaluate` judges them, on one device.

    python benchmarks/evaluate_gpu.py [--model NAME] [--batch 8,32] [--methods a,b] [--steps N]
                                      [--rounds N] [--device cuda|cpu]

Of each method all numbers of a batch are made, with the three maps of shuffled weights, and with
regions; without Ray, files and decoding. Weights are random, and targets the first class: neither
changes the time. What methods share is made before. Rates and costs are medians over rounds; what
costs dozens of passes a map runs once. Cost is that of a map, in forward passes of the same batch.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

sys.path.pop(0)  # this folder, whose explainer.py would hide the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe
from explainer import Method, VitClassifier, load_model
from explainer.evaluation import STAGES, Judge
from explainer.methods import Baseline, parse, passes_by_definition
from explainer.sanity import randomised

# Those of the tables in docs/evaluation.md.
METHODS = (
    *("reciprocam", "reciprocam:1x1", "reciprocam:-1", "reciprocam:-1:1x1", "rollout"),
    *("relevance", "gradcam", "legrad", "libragrad", "random", "center"),
    *("reciprocam:-3", "reciprocam:-3:1x1", "reciprocam:-2:kept", "rise:64"),
)
out = Console(soft_wrap=True, highlight=False, emoji=False)  # of which :-1: is one


@dataclass(frozen=True)
class Timed:
    """Seconds that judging a method on a batch took, and the cost of its maps."""

    seconds: float
    cost: float


def main() -> None:
    """Judge each method on a batch of each length, and print the table."""
    options = _options()
    out.print(describe("torch", "timm", device=options.device))
    out.print(f"{options.model}, float32, {options.steps} steps\n")
    model = load_model(options.model, seed=0)
    model.vit.to(options.device)
    judges = [_judge(model, length, options) for length in options.batch]
    timed = {
        name: [_timed(judge, parse(name), options.rounds) for judge in judges]
        for name in options.methods
    }
    _table(timed, options.batch)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images a second of judging methods.")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", default="8,32", help="lengths of batches")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    options.batch = [int(length) for length in options.batch.split(",")]
    options.methods = options.methods.split(",")
    return options


def _judge(model: VitClassifier, length: int, options: argparse.Namespace) -> Judge:
    """A judge whose case, shuffled models and device are warm."""
    generator = torch.Generator().manual_seed(0)
    shape = (length, 3, *model.preprocessing.input_size)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    judge = Judge(
        model,
        crops.to(options.device),
        torch.zeros(length, dtype=torch.long, device=options.device),
        options.steps,
        {stage: randomised(model, stage, 0) for stage in STAGES},
        torch.ones(length, *model.grid, device=options.device),
    )
    judge.metrics(parse("center"))
    return judge


def _timed(judge: Judge, method: Method, rounds: int) -> Timed:
    if _is_dear(method, judge.model):
        rounds = 1
    else:
        judge.maps(method, judge.crops)  # what a first call costs besides
    seconds, costs = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        numbers = judge.metrics(method)  # on the CPU, so nothing is left to wait for
        seconds.append(time.perf_counter() - started)
        costs.append(float(numbers["cost"][0]))
    return Timed(statistics.median(seconds), statistics.median(costs))


def _is_dear(method: Method, model: VitClassifier) -> bool:
    by_masks = isinstance(method, Baseline) and method.masks is not None
    return by_masks or passes_by_definition(method, model) is not None


def _table(timed: dict[str, list[Timed]], lengths: list[int]) -> None:
    """A line a method, and one of all of them, each after the other."""
    heads = [f"{f'batch {length}: images/s':>22} {'cost':>6}" for length in lengths]
    out.print(f"{'method':<20}{''.join(heads)}")
    for name, of_lengths in timed.items():
        both = zip(of_lengths, lengths, strict=True)
        cells = [f"{length / each.seconds:>22.1f} {each.cost:>6.2f}" for each, length in both]
        out.print(f"{name:<20}{''.join(cells)}")
    totals = [sum(of_length) for of_length in _by_length(timed)]
    rates = [length / total for length, total in zip(lengths, totals, strict=True)]
    out.print(f"{'all of them':<20}" + "".join(f"{rate:>22.2f}{'':>7}" for rate in rates))


def _by_length(timed: dict[str, list[Timed]]) -> Iterator[list[float]]:
    """Seconds of all methods, for each length of batches."""
    for of_length in zip(*timed.values(), strict=True):
        yield [each.seconds for each in of_length]


if __name__ == "__main__":
    main()
