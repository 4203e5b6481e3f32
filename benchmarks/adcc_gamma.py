"""What a gamma on the map does to ADCC, and does not do to insertion and deletion.

    python benchmarks/adcc_gamma.py [--images N] [--methods a,b,c]

On the demo's model and pictures that it has not seen. Maps are raised to a power, which changes no
rank; the map of the masked image, which coherency compares, is raised alike.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.pop(0)  # this folder, whose explainer.py would hide the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks.machine import describe
from explainer import VitClassifier, decode, explain, load_model
from explainer.checkpoints import read_checkpoint
from explainer.faithfulness import Case, adcc, curves, harmonic
from jobs import pictures

MODEL = Path(__file__).resolve().parents[1] / "jobs" / "demo_model" / "model.safetensors"
GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)
FIRST_SEED, AT_ONCE, STEPS = 300_000, 16, 16
out = Console(soft_wrap=True, highlight=False)


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Sweep a gamma on maps.")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--methods", default="reciprocam,reciprocam:-1,relevance")
    options = parser.parse_args()
    out.print(describe("torch", "timm"))
    content = MODEL.read_bytes(), MODEL.name, (MODEL.parent / "config.json").read_bytes()
    model = load_model("vit_tiny_patch16_224", checkpoint=read_checkpoint(*content))
    names = pictures.CLASS_NAMES
    drawn = [
        pictures.draw(names[i % len(names)], FIRST_SEED + i // len(names))
        for i in range(options.images)
    ]
    crops = [decode(pictures.jpeg(picture), model.preprocessing).crop for picture in drawn]
    out.print(f"\n{len(crops)} images\n")
    out.print("| method | gamma | Drop | Coherency | Complexity | ADCC of means | ins. | del. |")
    out.print("|---|---|---|---|---|---|---|---|")
    for method in options.methods.split(","):
        for gamma in GAMMAS:
            parts = torch.from_numpy(np.stack(crops)).split(AT_ONCE)
            numbers = torch.cat([measure(model, part, method, gamma) for part in parts])
            drop, coherency, complexity, insertion, deletion = numbers.mean(0)
            whole = harmonic(coherency, complexity, drop)
            cells = (drop, coherency, complexity, whole, insertion, deletion)
            out.print(f"| {method} | {gamma:g} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


def measure(model: VitClassifier, crops: Tensor, method: str, gamma: float) -> Tensor:
    """[images, 5]: drop, coherency, complexity, insertion and deletion of maps to a power."""
    targets = explain(model, crops, method="center").targets[:, 0]

    def maps(of: Tensor) -> Tensor:
        explained = explain(model, of, target="label", labels=targets, method=method)
        return explained.saliency[:, 0].pow(gamma)

    subject, saliency = Case(model, crops, targets), maps(crops)
    masked, areas = adcc(subject, saliency, maps), curves(subject, saliency, STEPS)
    return torch.stack(
        [masked.drop, masked.coherency, masked.complexity, areas.insertion, areas.deletion], dim=1
    )


if __name__ == "__main__":
    main()
