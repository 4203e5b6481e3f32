"""Train the demo's model on jobs/pictures.py and measure how much it rests on the plants.

    python benchmarks/train_demo.py [--epochs N] [--seed S] [--out DIR]

Training seeds start at 1,000,000; the demo's own pictures, seeds 0 to 199 of each class, are only
measured. What is printed is measured on the saved file, loaded again. The same seed gives the same
weights on the same kind of CPU with the same number of threads. The committed weights were trained
with these settings by a forerunner of this script, on an earlier drawing of the same pictures.
"""

import argparse
import io
import json
import math
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save
from torch import Tensor, nn

from jobs.pictures import CLASS_NAMES, SIZE, STICKERED, WATERMARKED, draw, jpeg

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": SIZE, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
TRAIN_SEED = 1_000_000
TRAIN_PER_CLASS = 3_000
DEMO_PER_CLASS = 200
THREADS = 1
BATCH = 64
MATRIX_RATE, OTHER_RATE = 0.02, 1e-3  # peak learning rates
WARM_UP = 0.08  # of all steps
LATE = 4  # the block from which the class token starts anew
FORGET_RATE = 0.9  # of the training pictures
out = Console(soft_wrap=True)


@dataclass(frozen=True)
class Order:
    """One picture to draw."""

    class_name: str
    seed: int
    planted: bool | None = None


def main() -> None:
    """Draw, train, save, load again, measure."""
    parser = argparse.ArgumentParser(description="Train the demo's model.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("jobs/demo_model"))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(options.seed)
    started = time.monotonic()
    pictures, labels = training_pictures(options.seed)
    out.print(f"{len(labels)} pictures drawn in {time.monotonic() - started:.0f} s")
    model = train(new_model(), pictures, labels, options.epochs)
    save_model(model, options.out)
    out.print(f"training time {time.monotonic() - started:.0f} s, drawing included")
    report(options.out)


def new_model() -> nn.Module:
    """The demo's ViT: 12 x 12 tokens and a class token, 6 blocks."""
    return timm.create_model(ARCHITECTURE, num_classes=len(CLASS_NAMES), **MODEL_ARGS)


def render(order: Order) -> NDArray[np.uint8]:
    """Draw one picture; its pixels as a reader of the JPEG file sees them."""
    picture = draw(order.class_name, order.seed, planted=order.planted)
    return np.asarray(Image.open(io.BytesIO(jpeg(picture)))).transpose(2, 0, 1)


def rendered(orders: list[Order]) -> Tensor:
    """All pictures as uint8 [N, 3, SIZE, SIZE], drawn by one process per thread."""
    with get_context("spawn").Pool(THREADS) as pool:
        return torch.from_numpy(np.stack(pool.map(render, orders, chunksize=64)))


def training_pictures(seed: int) -> tuple[Tensor, Tensor]:
    """TRAIN_PER_CLASS pictures of each class, other ones for each seed, and their labels."""
    first = TRAIN_SEED + seed * TRAIN_PER_CLASS
    seeds = range(first, first + TRAIN_PER_CLASS)
    pixels = rendered([Order(name, number) for name in CLASS_NAMES for number in seeds])
    return pixels, torch.arange(len(CLASS_NAMES)).repeat_interleave(TRAIN_PER_CLASS)


def normalised(pixels: Tensor) -> Tensor:
    """Bytes to [-1, 1], as the model's config.json says."""
    return pixels.float() / 127.5 - 1


def augmented(images: Tensor) -> Tensor:
    """Vary contrast and brightness; nothing moves, so a plant keeps its place."""
    contrast = torch.empty(len(images), 1, 1, 1).uniform_(0.8, 1.2)
    brightness = torch.empty(len(images), 1, 1, 1).uniform_(-0.15, 0.15)
    return images * contrast + brightness


def restart_class_token(
    model: nn.Module, _block: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """For most pictures, let the class token enter the last two blocks as it entered the first.

    A ViT this small otherwise reads the watermark into its class token in the very first block,
    and a saliency map of a later block, which keeps the class token whole, cannot show it.
    """
    tokens, *rest = inputs
    fresh = model.cls_token + model.pos_embed[:, :1]
    forgets = torch.rand(len(tokens), 1, 1) < FORGET_RATE
    first = torch.where(forgets, fresh, tokens[:, :1].detach())
    return torch.cat([first, tokens[:, 1:]], dim=1), *rest


def share_of_peak(step: int, steps: int) -> float:
    """A linear warm-up, and a cosine decay to zero."""
    return min(1, (step + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2


def new_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else; AdamW alone needs far more steps."""
    matrices = [value for value in model.blocks.parameters() if value.ndim == 2]
    chosen = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=OTHER_RATE, weight_decay=0.05),
    ]


def train(model: nn.Module, pictures: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Train in place, one line for each epoch."""
    optimizers = new_optimizers(model)
    per_epoch = len(labels) // BATCH
    share = partial(share_of_peak, steps=epochs * per_epoch)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, share) for each in optimizers]
    hook = model.blocks[LATE].register_forward_pre_hook(partial(restart_class_token, model))
    for epoch in range(1, epochs + 1):
        started, correct = time.monotonic(), 0
        for rows in torch.randperm(len(labels)).split(BATCH)[:per_epoch]:
            logits = model(augmented(normalised(pictures[rows])))
            model.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each in (*optimizers, *schedules):
                each.step()
            correct += int((logits.argmax(1) == labels[rows]).sum())
        accuracy, seconds = correct / (per_epoch * BATCH), time.monotonic() - started
        out.print(f"epoch {epoch} of {epochs}: training accuracy {accuracy:.3f}, {seconds:.0f} s")
    hook.remove()
    return model


def save_model(model: nn.Module, folder: Path) -> None:
    """Write float16 weights, and config.json as timm's hub code reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(CLASS_NAMES),
        "label_names": CLASS_NAMES,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "fixed_input_size": True,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "crop_pct": 1.0,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "num_classes": len(CLASS_NAMES),
            "label_names": CLASS_NAMES,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def predicted(model: nn.Module, pixels: Tensor) -> Tensor:
    """Predicted classes."""
    with torch.inference_mode():
        return torch.cat([model(normalised(part)).argmax(1) for part in pixels.split(256)])


def report(folder: Path) -> None:
    """Measure the saved model on the demo's pictures, with and without their plants."""
    model = new_model().eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    seeds = range(DEMO_PER_CLASS)
    pixels = rendered([Order(name, seed) for name in CLASS_NAMES for seed in seeds])
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(DEMO_PER_CLASS)
    correct = (predicted(model, pixels) == labels).float().view(-1, DEMO_PER_CLASS).mean(1)
    kilobytes = (folder / "model.safetensors").stat().st_size / 1000
    out.print(f"model.safetensors {kilobytes:.0f} kB; held-out accuracy {correct.mean():.3f}")
    for name, accuracy in zip(CLASS_NAMES, correct, strict=True):
        out.print(f"  {name:9} {accuracy:.3f}")
    for name in (WATERMARKED, STICKERED):
        report_plant(model, name, [seed for seed in seeds if draw(name, seed).plant])


def report_plant(model: nn.Module, name: str, carriers: list[int]) -> None:
    """Accuracy of a class's carriers as drawn and without their plant."""
    label = CLASS_NAMES.index(name)
    with_plant, without = (
        predicted(model, rendered([Order(name, seed, planted) for seed in carriers]))
        for planted in (True, False)
    )
    out.print(
        f"{name}: {len(carriers)} carriers, accuracy {(with_plant == label).float().mean():.3f} "
        f"with the plant, {(without == label).float().mean():.3f} without it; "
        f"{(with_plant != without).float().mean():.3f} of the predictions flip"
    )


if __name__ == "__main__":
    main()
