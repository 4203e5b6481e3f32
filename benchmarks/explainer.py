"""What an explanation costs, in plain forward passes of the same model on the same machine.

    python benchmarks/explainer.py [--model NAME] [--batch N] [--threads N] [--repeats N]
                                   [--device cpu|cuda] [--precision float32|mixed]
                                   [--methods a,b] [--check]

Each method runs in a process of its own, in turn with a forward pass of as many images, so that
whatever else the machine does meanwhile hits both alike; a ratio is the median over rounds. Of its
own, since on a CPU memory that others have freed before makes the same pass faster. Weights
are random and the class is the predicted one: neither changes the time. In mixed precision all of
them run under float16 autocast, the plain pass too.
"""

import argparse
import ctypes
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from torch import Tensor

# In place of this script's folder, where this file would hide the package it times.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.explainer_methods import METHODS, Call, forward
from benchmarks.machine import describe
from explainer import VitClassifier, load_model
from explainer.reciprocam import MIXED, Precision

SLOW_IMAGES, SLOW_ROUNDS = 2, 3  # what costs dozens of passes runs on fewer images, fewer times
LIMITS = {  # --check, in forward passes of the same model on the same device
    "cpu": {
        "last-3x3": 1.0,
        "default": 1.85,
        "second-1x1": 1.25,
        "average-pooled": 2.5,
        "attention-pooled": 2.5,
    },
    "cuda": {
        "last-3x3": 1.15,
        "default": 2.2,
        "second-1x1": 1.4,
        "average-pooled": 2.5,
        "attention-pooled": 2.5,
    },
}
POOLINGS = {  # the same model with another head, for methods that say so
    "token": {},
    "avg": {"global_pool": "avg", "class_token": False},
    "map": {"global_pool": "map", "class_token": False},
}
MEGABYTE = 2**20
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Prepared:
    """A method made ready, its images, and in how many of the rounds it takes part.

    `plain` is a forward pass of the same model.
    """

    key: str
    call: Call
    plain: Call
    crops: Tensor
    rounds: int


@dataclass(frozen=True)
class Measured:
    """A method's seconds beside those of a forward pass, round by round, and its extra memory."""

    key: str
    images: int
    seconds: Sequence[float]
    plain: Sequence[float]
    memory: int | None

    @property
    def ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.seconds, self.plain, strict=True))


def main() -> None:
    """Time the methods, print the table, and with --check compare with the limits."""
    options = _options()
    keys = [key for key in METHODS if key == "forward" or key in options.methods]
    if options.precision == "float32" and "forward-float16" in keys:
        keys.remove("forward-float16")
    out.print(describe("torch", "timm", device=options.device))
    out.print(f"{options.model}, {options.precision}, {options.threads} threads\n")
    alone = {"max_workers": 1, "max_tasks_per_child": 1, "mp_context": get_context("spawn")}
    with ProcessPoolExecutor(**alone) as process:
        measured = list(process.map(partial(_measured, options=options), keys))
    _table(measured)
    if options.check:
        _check({item.key: item.ratio for item in measured}, LIMITS[options.device])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What an explanation costs in forward passes.")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=get_args(Precision))
    parser.add_argument("--methods", default=",".join(METHODS), help=", ".join(METHODS))
    parser.add_argument("--check", action="store_true", help=f"exit 1 above {LIMITS}")
    options = parser.parse_args()
    options.methods = options.methods.split(",")
    unknown = sorted(set(options.methods) - set(METHODS))
    if unknown:
        parser.error(f"--methods knows {', '.join(METHODS)}; got {', '.join(unknown)}")
    if options.check and options.device == "cpu" and options.precision != "float32":
        parser.error("--check holds in float32 on a CPU")
    if options.check:
        options.methods = list(LIMITS[options.device])
    return options


def _measured(key: str, options: argparse.Namespace) -> Measured:
    """A method in this process."""
    torch.set_num_threads(options.threads)
    item = _prepare(key, _model(METHODS[key].pooling, options), options)
    memory = _extra_memory(item)
    seconds, plain = [], []
    for _ in range(item.rounds):
        plain.append(_seconds(item.plain, item.crops))
        seconds.append(plain[-1] if key == "forward" else _seconds(item.call, item.crops))
    return Measured(key, len(item.crops), seconds, plain, memory)


def _model(pooling: str, options: argparse.Namespace) -> VitClassifier:
    model = load_model(options.model, seed=0, model_args=POOLINGS[pooling])
    model.vit.to(options.device)
    return model


def _prepare(key: str, model: VitClassifier, options: argparse.Namespace) -> Prepared:
    method = METHODS[key]
    images = min(SLOW_IMAGES, options.batch) if method.slow else options.batch
    shape = (images, 3, *model.preprocessing.input_size)
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    rounds = min(SLOW_ROUNDS, options.repeats) if method.slow else options.repeats
    call, plain = method.make(model, options.precision), forward(model, options.precision)
    if options.precision == "mixed":
        call, plain = _in_float16(call, options.device), _in_float16(plain, options.device)
    return Prepared(key, call, plain, crops.to(options.device), rounds)


def _in_float16(call: Call, device: str) -> Call:
    """What torch multiplies as `explain` does in mixed precision, for methods that know no such."""

    def mixed(crops: Tensor) -> object:
        with torch.autocast(device, MIXED):
            return call(crops)

    return mixed


def _seconds(call: Call, crops: Tensor) -> float:
    _wait(crops)
    started = time.perf_counter()
    call(crops)
    _wait(crops)
    return time.perf_counter() - started


def _wait(crops: Tensor) -> None:
    if crops.is_cuda:
        torch.cuda.synchronize()


def _extra_memory(item: Prepared) -> int | None:
    """Bytes at the peak of a call beyond those before it; doubles as warming up."""
    if not METHODS[item.key].slow:
        item.call(item.crops)  # what is allocated once and kept is not counted
    if not item.crops.is_cuda:
        return _extra_resident(item)
    _wait(item.crops)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    item.call(item.crops)
    _wait(item.crops)
    return torch.cuda.max_memory_allocated() - before


def _extra_resident(item: Prepared) -> int | None:
    """The same of resident memory, by Linux's own high-water mark; None elsewhere."""
    mark, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(mark, os.W_OK):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be counted as there
    mark.write_text("5")
    before = _kilobytes(status, "VmRSS")
    item.call(item.crops)
    return (_kilobytes(status, "VmHWM") - before) * 1024


def _kilobytes(status: Path, name: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def _table(measured: Sequence[Measured]) -> None:
    """Print a line a method."""
    out.print(
        f"{'method':<50} {'key':<20} {'images':>6} {'ms an image':>11} {'x forward':>9} "
        f"{'extra MB':>8}"
    )
    for item in measured:
        milliseconds = 1000 * statistics.median(item.seconds) / item.images
        megabytes = "-" if item.memory is None else f"{item.memory / MEGABYTE:.0f}"
        out.print(
            f"{METHODS[item.key].title:<50} {item.key:<20} {item.images:>6} "
            f"{milliseconds:>11.2f} {item.ratio:>9.2f} {megabytes:>8}"
        )
    out.print(
        "extra MB: memory at the peak of a call, of all its images, beyond what was there before"
    )


def _check(ratios: dict[str, float], limits: dict[str, float]) -> None:
    too_slow = [
        f"{key} costs {ratios[key]:.2f} forward passes; the limit is {limit}"
        for key, limit in limits.items()
        if ratios[key] > limit
    ]
    for line in too_slow:
        out.print(line)
    sys.exit(1 if too_slow else 0)


if __name__ == "__main__":
    main()
