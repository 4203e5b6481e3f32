"""What an explanation costs, in plain forward passes of the same model on the same machine.

    python benchmarks/explainer.py [--model NAME] [--batch N] [--threads N] [--repeats N]
                                   [--device cpu|cuda] [--methods a,b] [--check]

In every round all methods run one after the other, so that whatever else the machine does meanwhile
hits all of them alike; a ratio is the median over rounds of a method's time over that of a forward
pass of as many images in the same round. Weights are random and the class is the predicted one:
neither changes the time. The methods of other packages come from the dependency group `benchmarks`.
"""

import argparse
import copy
import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import timm
import torch
from rich.console import Console
from torch import Tensor

# Python puts a script's folder first on the path, where this file would hide the package it times.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from explainer import ReciproCam, VitClassifier, explain, load_model
from explainer.definition import definition
from explainer.masks import masks_of
from explainer.scores import class_scores
from explainer.structure import tokens_entering

SLOW_IMAGES, SLOW_ROUNDS = 2, 3  # what costs dozens of passes runs on fewer images, fewer times
LIMITS = {  # --check, in forward passes of the same model on a CPU
    "last-3x3": 1.0,
    "default": 1.85,
    "second-1x1": 1.25,
    "average-pooled": 2.5,
    "attention-pooled": 2.5,
}
POOLINGS = {  # the same model with another head, for methods that say so
    "token": {},
    "avg": {"global_pool": "avg", "class_token": False},
    "map": {"global_pool": "map", "class_token": False},
}
MEGABYTE = 2**20
Call = Callable[[Tensor], object]
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Method:
    """One way to explain: `make` prepares it for a model, and what it returns explains a batch."""

    title: str
    make: Callable[[VitClassifier], Call]
    slow: bool = False
    pooling: str = "token"


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


def forward(model: VitClassifier) -> Call:
    @torch.inference_mode()
    def call(crops: Tensor) -> Tensor:
        return model.vit(model.normalise(crops))

    return call


def reciprocam(method: ReciproCam) -> Callable[[VitClassifier], Call]:
    return lambda model: (
        lambda crops: explain(model, crops, method=method, allow_definition=True).saliency
    )


def by_definition(block: int) -> Callable[[VitClassifier], Call]:
    """Mask by mask through the network's tail, also where a cheaper form would serve."""

    def make(model: VitClassifier) -> Call:
        @torch.inference_mode()
        def call(crops: Tensor) -> list[Tensor]:
            images = model.normalise(crops)
            entering = tokens_entering(model.vit, images, len(model.vit.blocks) + block)
            masks = masks_of(model.grid, "3x3", images.dtype, images.device)
            passes = definition(model, entering, masks, "masked")
            predicted = passes.unmasked.argmax(-1, keepdim=True)
            return [class_scores(each.logits, predicted, "log_odds") for each in passes.masked]

        return call

    return make


def grad_cam(*, all_gradients: bool) -> Callable[[VitClassifier], Call]:
    """Grad-CAM at the last block's first norm, where the package's documentation puts it for ViTs.

    A model as loaded by timm computes the gradients of all its weights; those from the last block
    on are enough.
    """

    def make(model: VitClassifier) -> Call:
        from pytorch_grad_cam import GradCAM

        vit = copy.deepcopy(model.vit).requires_grad_(all_gradients)
        layer = vit.blocks[-1].norm1.requires_grad_(True)

        def to_grid(tokens: Tensor) -> Tensor:
            return tokens[:, model.prefix :].unflatten(1, model.grid).permute(0, 3, 1, 2)

        cam = GradCAM(model=vit, target_layers=[layer], reshape_transform=to_grid)
        return lambda crops: cam(model.normalise(crops), targets=None)

    return make


def integrated_gradients(model: VitClassifier) -> Call:
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model.vit)

    def call(crops: Tensor) -> Tensor:
        images = model.normalise(crops)
        with torch.no_grad():
            target = model.vit(images).argmax(-1)
        found = method.attribute(images, target=target, n_steps=50, internal_batch_size=8)
        return found.sum(1)

    return call


METHODS = {
    "forward": Method("plain forward pass", forward),
    "last-3x3": Method("ReciproCAM, last block, 3x3 masks", reciprocam(ReciproCam(-1))),
    "last-1x1": Method("ReciproCAM, last block, 1x1 masks", reciprocam(ReciproCam(-1, mask="1x1"))),
    "default": Method("ReciproCAM, last but one, 3x3 (default)", reciprocam(ReciproCam())),
    "second-1x1": Method("ReciproCAM, last but one, 1x1", reciprocam(ReciproCam(mask="1x1"))),
    "average-pooled": Method(
        "ReciproCAM, last but one, average-pooled model", reciprocam(ReciproCam()), pooling="avg"
    ),
    "attention-pooled": Method(
        "ReciproCAM, last but one, attention-pooled model", reciprocam(ReciproCam()), pooling="map"
    ),
    "definition-last": Method("mask by mask, last block, 3x3", by_definition(-1), slow=True),
    "definition-second": Method("mask by mask, last but one, 3x3", by_definition(-2), slow=True),
    "grad-cam": Method("Grad-CAM (grad-cam)", grad_cam(all_gradients=True)),
    "grad-cam-last": Method(
        "Grad-CAM, gradients of the last block only", grad_cam(all_gradients=False)
    ),
    "integrated-gradients": Method(
        "integrated gradients, 50 steps (captum)", integrated_gradients, slow=True
    ),
}


def main() -> None:
    """Time the methods, print the table, and with --check compare with the limits."""
    options = _options()
    torch.set_num_threads(options.threads)
    keys = [key for key in METHODS if key == "forward" or key in options.methods]
    models = {pooling: _model(pooling, options) for pooling in _poolings(keys)}
    prepared = [_prepare(key, models[METHODS[key].pooling], options) for key in keys]
    _describe_machine(options)
    memory = {item.key: _extra_memory(item) for item in prepared}
    times = _rounds(prepared, options.repeats)
    ratios = _table(times, memory, prepared)
    if options.check:
        _check(ratios)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What an explanation costs in forward passes.")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--methods", default=",".join(METHODS), help=", ".join(METHODS))
    parser.add_argument("--check", action="store_true", help=f"exit 1 above {LIMITS}; CPU only")
    options = parser.parse_args()
    options.methods = options.methods.split(",")
    unknown = sorted(set(options.methods) - set(METHODS))
    if unknown:
        parser.error(f"--methods knows {', '.join(METHODS)}; got {', '.join(unknown)}")
    if options.check and options.device != "cpu":
        parser.error("--check holds for the CPU")
    if options.check:
        options.methods = list(LIMITS)
    return options


def _poolings(keys: list[str]) -> list[str]:
    return [each for each in POOLINGS if any(METHODS[key].pooling == each for key in keys)]


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
    return Prepared(key, method.make(model), forward(model), crops.to(options.device), rounds)


def _rounds(prepared: list[Prepared], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each method, and of a forward pass of as many images, in each round."""
    times: dict[str, list[tuple[float, float]]] = {item.key: [] for item in prepared}
    for each in range(repeats):
        plain: dict[tuple[str, int], float] = {}
        for item in prepared:
            if each >= item.rounds:
                continue
            own = METHODS[item.key].pooling, len(item.crops)
            if own not in plain:
                plain[own] = _seconds(item.plain, item.crops)
            seconds = plain[own] if item.key == "forward" else _seconds(item.call, item.crops)
            times[item.key].append((seconds, plain[own]))
    return times


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


def _describe_machine(options: argparse.Namespace) -> None:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor()
    if options.device == "cuda":
        processor = f"{torch.cuda.get_device_name()}, {processor}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    out.print(
        f"{date.today()}, {processor}, {os.cpu_count()} cores, {options.threads} threads{load}"
    )
    out.print(f"torch {torch.__version__}, timm {timm.__version__}, {options.model}, float32\n")


def _table(
    times: dict[str, list[tuple[float, float]]],
    memory: dict[str, int | None],
    prepared: list[Prepared],
) -> dict[str, float]:
    """Print a line a method; returns the ratios."""
    out.print(
        f"{'method':<50} {'key':<20} {'images':>6} {'ms an image':>11} {'x forward':>9} "
        f"{'extra MB':>8}"
    )
    ratios = {}
    for item in prepared:
        seconds = statistics.median(own for own, _ in times[item.key])
        ratios[item.key] = statistics.median(own / plain for own, plain in times[item.key])
        extra = memory[item.key]
        megabytes = "-" if extra is None else f"{extra / MEGABYTE:.0f}"
        count = len(item.crops)
        out.print(
            f"{METHODS[item.key].title:<50} {item.key:<20} {count:>6} "
            f"{1000 * seconds / count:>11.1f} {ratios[item.key]:>9.2f} {megabytes:>8}"
        )
    out.print(
        "extra MB: memory at the peak of a call, of all its images, beyond what was there before"
    )
    return ratios


def _check(ratios: dict[str, float]) -> None:
    too_slow = [
        f"{key} costs {ratios[key]:.2f} forward passes; the limit is {limit}"
        for key, limit in LIMITS.items()
        if ratios[key] > limit
    ]
    for line in too_slow:
        out.print(line)
    sys.exit(1 if too_slow else 0)


if __name__ == "__main__":
    main()
