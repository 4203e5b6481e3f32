"""How maps of lower precision rank patches: Spearman correlation with the float64 map.

    python benchmarks/precision.py FOLDER [--every N] [--checkpoint FILE] [--device cpu|cuda]

FOLDER holds photographs, in sub-folders or flat. The model is the demo's, trained on drawings, so
photographs are strange to it; a trained network's scores and their spread are what matters here. An
image is confidently predicted where its class has a probability of at least 0.9.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy.stats import rankdata
from torch import Tensor

# In place of this script's folder, where a file would hide a package it uses.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe
from explainer import (
    Explanation,
    ReciproCam,
    VitClassifier,
    decode,
    explain,
    load_model,
    reciprocam,
)
from explainer.checkpoints import read_checkpoint

DEMO = Path(__file__).resolve().parents[1] / "jobs" / "demo_model" / "model.safetensors"
CONFIDENT = 0.9
BATCH = 32
out = Console(soft_wrap=True, highlight=False)
Explain = Callable[[Tensor, ReciproCam], Explanation]


@dataclass(frozen=True)
class Split:
    """What runs in which precision."""

    title: str
    make: Callable[[VitClassifier], Explain]


def as_loaded(model: VitClassifier) -> Explain:
    return lambda crops, method: explain(model, crops, method=method)


def mixed(dtype: torch.dtype) -> Callable[[VitClassifier], Explain]:
    """As `--precision mixed`, in float16 or in another type."""

    def make(model: VitClassifier) -> Explain:
        def run(crops: Tensor, method: ReciproCam) -> Explanation:
            shipped, reciprocam.MIXED = reciprocam.MIXED, dtype
            try:
                return explain(model, crops, method=method, precision="mixed")
            finally:
                reciprocam.MIXED = shipped

        return run

    return make


def all_of_it(dtype: torch.dtype) -> Callable[[VitClassifier], Explain]:
    """Weights, activations, norms, softmax, classifier and scores alike."""

    def make(model: VitClassifier) -> Explain:
        converted = copy.deepcopy(model)
        converted.vit.to(dtype)
        return as_loaded(converted)

    return make


def body_only(model: VitClassifier) -> Explain:
    """Matrix products before the masked block in bfloat16, everything from it on in float32."""
    body = copy.deepcopy(model)
    for block in body.vit.blocks[:-2]:
        device = block.norm1.weight.device.type
        block.forward = torch.autocast(device, torch.bfloat16)(block.forward)
    return as_loaded(body)


SPLITS = (
    Split("float32", as_loaded),
    Split("products in float16 (--precision mixed)", mixed(torch.float16)),
    Split("products in bfloat16", mixed(torch.bfloat16)),
    Split("products in bfloat16 up to block -3, float32 after", body_only),
    Split("everything in bfloat16", all_of_it(torch.bfloat16)),
)


def main() -> None:
    """Print a line for each split and block."""
    parser = argparse.ArgumentParser(description="Rank correlation with the float64 map.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take each Nth photograph")
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    checkpoint = read_checkpoint(
        options.checkpoint.read_bytes(),
        options.checkpoint.name,
        (options.checkpoint.parent / "config.json").read_bytes(),
    )
    model = load_model(checkpoint.config["architecture"], checkpoint=checkpoint)
    crops = photographs(options.folder, model)[:: options.every].to(options.device)
    model.vit.to(options.device)
    out.print(describe("torch", "timm", device=options.device))
    out.print(f"{len(crops)} photographs, {options.checkpoint.parent.name}\n")
    out.print(
        f"{'precision':<54} {'block':>5} {'median':>8} {'least':>8} {'confident':>9}  seconds"
    )
    for block in (-1, -2):
        exact = explained(all_of_it(torch.float64)(model), crops, block)
        sure = exact.logits.softmax(-1).amax(-1) >= CONFIDENT
        for split in SPLITS:
            started = time.perf_counter()
            found = explained(split.make(model), crops, block)
            seconds = time.perf_counter() - started
            correlation = spearman(found, exact)
            out.print(
                f"{split.title:<54} {block:>5} {np.median(correlation):>8.5f} "
                f"{correlation.min():>8.5f} {np.median(correlation[sure.cpu().numpy()]):>9.5f}  "
                f"{seconds:.1f}"
            )
    out.print(f"confident: median over the {int(sure.sum())} with probability {CONFIDENT} or more")


def photographs(folder: Path, model: VitClassifier) -> Tensor:
    """Crops of every readable image below `folder`, in order of path."""
    decoded = [
        decode(path.read_bytes(), model.preprocessing)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return torch.from_numpy(np.stack([each.crop for each in decoded if each.crop is not None]))


def explained(explainer: Explain, crops: Tensor, block: int) -> Explanation:
    parts = [explainer(part, ReciproCam(block)) for part in crops.split(BATCH)]
    return Explanation.concatenated(parts)


def spearman(found: Explanation, exact: Explanation) -> np.ndarray:
    """Rank correlation of each image's map, ties at their mean rank; 0 for a constant map."""
    same = (found.targets == exact.targets)[:, 0].cpu().numpy()
    ranks = [
        rankdata(each.scores.double().flatten(1).cpu().numpy(), axis=1) for each in (found, exact)
    ]
    centred = [each - each.mean(1, keepdims=True) for each in ranks]
    norms = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    correlation = np.divide(
        (centred[0] * centred[1]).sum(1), norms, out=np.zeros(len(norms)), where=norms > 0
    )
    return np.where(same, correlation, 0.0)  # another class explained is no agreement at all


if __name__ == "__main__":
    main()
