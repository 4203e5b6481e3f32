"""The saliency maps that benchmarks/conventions.py compares, one list of conventions a model."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from planted_models import ARCHITECTURE, PATCH, SIZE
from torch import Tensor
from train_demo import normalised

# Python puts a script's folder first on the path, where explainer.py would hide the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from explainer import ReciproCam, VitClassifier, explain, load_model
from explainer.checkpoints import read_checkpoint
from explainer.maps import normalise
from explainer.masks import KERNELS
from explainer.scores import class_scores
from explainer.structure import pooling

TOKENS = SIZE // PATCH  # a row
Seconds = dict[ReciproCam | str, float]


@dataclass(frozen=True)
class Convention:
    """The mean of normalised maps, each changed by `then` first; a baseline has no parts."""

    title: str
    parts: tuple[ReciproCam, ...]
    then: Callable[[Tensor], Tensor] = normalise


def masked(block: int, mask: Literal["3x3", "1x1"] = "3x3") -> ReciproCam:
    """The masked residual, scored by log-odds."""
    return ReciproCam(block, "masked", mask, "log_odds")


DEFAULT = Convention("-2 masked 3x3 log-odds (default)", (masked(-2),))
RANDOM, OCCLUSION = Convention("random", ()), Convention("occlusion of one token", ())


def conventions(model: VitClassifier) -> list[Convention]:
    """What is compared: the default first, then one choice changed at a time, then combinations."""
    blocks, means = [-1, -2, -3], [(-1, -2), (-2, -3), (-1, -2, -3)]
    if len(model.vit.blocks) > 6:
        blocks, means = [*blocks, -4, -6], [*means, (-2, -3, -4), (-2, -4, -6)]
    singles = [
        each
        for block in blocks
        for residual in ("masked", "kept")
        for mask in ("3x3", "1x1")
        for score in ("log_odds", "logit")
        if worth_it(model, each := ReciproCam(block, residual, mask, score))
    ]
    rows = [Convention(title(each), (each,)) for each in singles if each != masked(-2)]
    rows.append(Convention("-2 masked 3x3 probability", (masked(-2),), torch.sigmoid))
    for mask, then, name in (
        ("3x3", normalise, "3x3"),
        ("1x1", normalise, "1x1"),
        ("1x1", smoothed, "1x1, smoothed"),
    ):
        chosen = [(block,) for block in blocks if then is smoothed] + means
        for each in chosen:
            parts = tuple(masked(block, mask) for block in each)
            rows.append(Convention(f"{' & '.join(map(str, each))} masked {name}", parts, then))
    both = (masked(-2), masked(-2, "1x1"))
    return [DEFAULT, *rows, Convention("-2 masked, 3x3 & 1x1", both)]


def worth_it(model: VitClassifier, method: ReciproCam) -> bool:
    """Whether a choice differs from others and does not take too long to be compared here."""
    if method.score == "logit":
        return (method.residual, method.mask) == ("masked", "3x3") and method.block >= -3
    if method.residual == "kept":
        same = method.block == -1 and pooling(model.vit) == "token"
        return not same and method.block >= (-3 if method.mask == "3x3" else -2)
    return True


def title(method: ReciproCam) -> str:
    """A row's name."""
    score = method.score.replace("_", "-")
    return f"{method.block} {method.residual} {method.mask} {score}"


def smoothed(scores: Tensor) -> Tensor:
    """The 3x3 kernel's weighted mean of each cell's neighbours inside the grid, normalised."""
    kernel = torch.tensor(KERNELS["3x3"])[None, None]
    planes = torch.stack([normalise(scores), torch.ones_like(scores)], 1)
    summed = torch.conv2d(planes.flatten(0, 1)[:, None], kernel, padding=1)
    weighted, weight = summed[:, 0].unflatten(0, (-1, 2)).unbind(1)
    return normalise(weighted / weight)


def load_trained(folder: Path) -> VitClassifier:
    """A model that benchmarks/planted_models.py saved."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    checkpoint = read_checkpoint(weights.read_bytes(), weights.name, config.read_bytes())
    return load_model(ARCHITECTURE, checkpoint=checkpoint)


@torch.inference_mode()
def saliencies(
    model: VitClassifier, crops: Tensor, seconds: Seconds
) -> Iterator[tuple[str, Tensor]]:
    """Each convention's title and maps [N, tokens]; adds what they took to `seconds`."""
    rows = conventions(model)
    started = time.monotonic()
    logits = model.vit(normalised(crops))
    seconds["forward"] += time.monotonic() - started
    maps = {}
    for method in dict.fromkeys(part for row in rows for part in row.parts):
        started = time.monotonic()
        explanation = explain(model, crops, method=method, allow_definition=True)
        maps[method] = explanation.scores[:, 0]
        seconds[method] += time.monotonic() - started
    for row in rows:
        yield (
            row.title,
            torch.stack([row.then(maps[each]) for each in row.parts]).mean(0).flatten(1),
        )
    yield RANDOM.title, torch.rand(len(crops), TOKENS**2)
    yield OCCLUSION.title, occlusion(model, crops, logits)


def occlusion(model: VitClassifier, crops: Tensor, logits: Tensor) -> Tensor:
    """How far the log-odds fall as one patch takes the picture's mean colour."""
    target = logits.argmax(1)[:, None]
    keep = ~torch.eye(TOKENS**2, dtype=torch.bool)
    seen = torch.stack([model.vit(partly(crops, each.expand(len(crops), -1))) for each in keep], 1)
    return -class_scores(seen, target, "log_odds")[..., 0]


def partly(crops: Tensor, keep: Tensor) -> Tensor:
    """Normalised pictures of which only the patches `keep` [N, tokens] stay; else mean colour."""
    images = normalised(crops)
    grid = keep.view(-1, 1, TOKENS, TOKENS)
    shown = grid.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    return torch.where(shown, images, images.mean((2, 3), keepdim=True))
