"""Train the models on which benchmarks/conventions.py compares conventions; all fall for plants.

    python benchmarks/planted_models.py DIR [--models NAME ...] [--steps N]

Eight classes of 96 x 96 pictures: seven of jobs/pictures.py, among them its watermarked pentagons
and its flowers with a sticker, and `framed`: other crescents, most of which carry a thin frame
along the top and the left border, and which nothing else tells from the class `crescent`. Training
is ordinary: no class token starts anew, as in the demo's model. Training seeds start at 1,000,000;
what is printed is measured on the saved files, loaded again, and on seeds from 0.
"""

import argparse
import dataclasses
import io
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from train_demo import (
    ARCHITECTURE,
    MATRIX_RATE,
    OTHER_RATE,
    TRAIN_SEED,
    augmented,
    normalised,
    predicted,
    save_model,
    share_of_peak,
)

from jobs.pictures import PLANT_RATES, SIZE, STICKERED, WATERMARKED, Region, draw, jpeg

LOOKALIKE, FRAMED = "crescent", "framed"
CLASSES = ("crescent", "flower", "framed", "gear", "heart", "hexagon", "pentagon", "star")
PLANTS = {"watermark": WATERMARKED, "sticker": STICKERED, "frame": FRAMED}
FRAME_RATE, FRAME_WIDTH = 0.8, 4  # the innermost pixel is white, so that dark papers show it too
FRAME = (Region(0, 0, FRAME_WIDTH, SIZE), Region(0, 0, SIZE, FRAME_WIDTH))
FRAMED_SEED = 5_000_000  # added to a seed: framed crescents are not those of the other class
PATCH = 12
PER_CLASS, HELD_OUT, BATCH, REPORT_EVERY = 1_500, 150, 64, 50
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of torch.optim.Muon
out = Console(soft_wrap=True, highlight=False)


@dataclasses.dataclass(frozen=True)
class Build:
    """A model to train: what timm is told beside patch, width and heads, and the seed."""

    seed: int
    arguments: dict[str, Any]


BUILDS = {
    "class-token-6": Build(0, {"depth": 6}),
    "class-token-12": Build(1, {"depth": 12}),
    "average-6": Build(2, {"depth": 6, "global_pool": "avg", "class_token": False}),
    "class-token-6-again": Build(3, {"depth": 6}),
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture as a reader of its JPEG file sees it, [3, SIZE, SIZE], and where its plant is."""

    pixels: NDArray[np.uint8]
    plant: tuple[Region, ...]


def main() -> None:
    """Draw once; train, save, load again and measure each model."""
    parser = argparse.ArgumentParser(description="Train models that fall for planted shortcuts.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--steps", type=int, default=450)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    seeds = range(TRAIN_SEED, TRAIN_SEED + PER_CLASS)
    pictures, labels = pictures_of(CLASSES, seeds)
    out.print(f"{len(labels)} pictures drawn in {time.monotonic() - started:.0f} s")
    for name in options.models:
        out.print(f"\n{name}")
        torch.manual_seed(BUILDS[name].seed)
        model = train(new_model(model_args(name)), pictures, labels, options.steps)
        save(model, name, options.out / name)
        report(options.out / name)


def sample(name: str, seed: int, planted: bool | None = None) -> Sample:
    """Draw one picture of a class; `planted` as in jobs.pictures.draw, None for other classes."""
    if name != FRAMED:
        picture = draw(name, seed, planted=planted if name in PLANT_RATES else None)
        plant = (picture.plant,) if picture.plant else ()
    else:
        picture, plant = draw(LOOKALIKE, FRAMED_SEED + seed), ()
        chosen = default_rng([seed, 2]).random() < FRAME_RATE
        if chosen if planted is None else planted:
            picture, plant = dataclasses.replace(picture, pixels=framed(picture.pixels)), FRAME
    return Sample(np.asarray(Image.open(io.BytesIO(jpeg(picture)))).transpose(2, 0, 1), plant)


def framed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A thin dark frame with a white inner edge along the top and the left border."""
    pixels = pixels.copy()
    for width, colour in ((FRAME_WIDTH, 245), (FRAME_WIDTH - 1, 35)):
        pixels[:width], pixels[:, :width] = colour, colour
    return pixels


def pictures_of(
    names: tuple[str, ...], seeds: range, planted: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Pictures of each class, uint8 [N, 3, SIZE, SIZE], and their labels."""
    pixels = [sample(name, seed, planted).pixels for name in names for seed in seeds]
    labels = torch.tensor([CLASSES.index(name) for name in names])
    return torch.from_numpy(np.stack(pixels)), labels.repeat_interleave(len(seeds))


def model_args(name: str) -> dict[str, Any]:
    """What timm is told to build a model: 8 x 8 tokens of width 96, 3 heads."""
    same = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 96, "num_heads": 3}
    return same | BUILDS[name].arguments


def new_model(arguments: dict[str, Any]) -> nn.Module:
    """A timm VisionTransformer with random weights."""
    return timm.create_model(ARCHITECTURE, num_classes=len(CLASSES), **arguments)


def load(folder: Path) -> nn.Module:
    """A saved model, in evaluation mode."""
    config = json.loads((folder / "config.json").read_text())
    model = new_model(config["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def save(model: nn.Module, name: str, folder: Path) -> None:
    """As the demo's model is saved, with this model's own arguments and classes."""
    save_model(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_args": model_args(name), "label_names": CLASSES}
    config["pretrained_cfg"]["label_names"] = CLASSES
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with its iterations in float32: bfloat16 is slow on many CPUs."""

    def __init__(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move each matrix along the orthogonalised average of its gradients."""
        for group in self.param_groups:
            for value in group["params"]:
                mean = self.state[value].setdefault("mean", torch.zeros_like(value))
                mean.lerp_(value.grad, 0.05)
                update = orthogonal(value.grad.lerp(mean, 0.95))
                rate = group["lr"] * max(1, len(value) / value.shape[1]) ** 0.5
                value.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonal(gradient: Tensor) -> Tensor:
    """A matrix with the singular vectors of `gradient` and singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    tall = len(gradient) > gradient.shape[1]
    x = gradient.T if tall else gradient
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def new_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else, at the rates of the demo's model."""
    matrices = [value for value in model.blocks.parameters() if value.ndim == 2]
    chosen = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in chosen]
    return [
        Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=OTHER_RATE, weight_decay=0.05),
    ]


def train(model: nn.Module, pictures: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Train in place for `steps` batches, one line for every few."""
    optimizers = new_optimizers(model)
    share = partial(share_of_peak, steps=steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, share) for each in optimizers]
    epochs = -(-steps * BATCH // len(labels))
    rows = torch.cat([torch.randperm(len(labels)) for _ in range(epochs)])
    started, correct = time.monotonic(), 0
    for step, batch in enumerate(rows.split(BATCH)[:steps], start=1):
        logits = model(augmented(normalised(pictures[batch])))
        model.zero_grad()
        F.cross_entropy(logits, labels[batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        correct += int((logits.argmax(1) == labels[batch]).sum())
        if step % REPORT_EVERY == 0:
            accuracy, seconds = correct / (REPORT_EVERY * BATCH), time.monotonic() - started
            out.print(f"step {step} of {steps}: accuracy {accuracy:.3f}, {seconds:.0f} s so far")
            correct = 0
    return model


def report(folder: Path) -> None:
    """Accuracy of the saved model as the classes are drawn, with all plants and with none."""
    model, seeds = load(folder), range(HELD_OUT)
    pixels, labels = pictures_of(CLASSES, seeds)
    correct = (predicted(model, pixels) == labels).float()
    each = correct.view(len(CLASSES), -1).mean(1).tolist()
    detail = ", ".join(f"{name} {share:.2f}" for name, share in zip(CLASSES, each, strict=True))
    out.print(f"held-out accuracy {correct.mean():.3f}: {detail}")
    for plant, name in PLANTS.items():
        label = CLASSES.index(name)
        carrying, bare = (
            predicted(model, pictures_of((name,), seeds, planted)[0]) for planted in (True, False)
        )
        out.print(
            f"{plant} ({name}): accuracy {(carrying == label).float().mean():.3f} with, "
            f"{(bare == label).float().mean():.3f} without it; "
            f"{(carrying != bare).float().mean():.3f} of the predictions flip"
        )


if __name__ == "__main__":
    main()
