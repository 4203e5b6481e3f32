"""ViT-ReciproCAM in about the price of a forward pass, equal to its definition (`reference.py`).

For every patch n what attention reads at block k is multiplied by a mask around n, the rest of the
network runs, and the target's score is n's saliency (arXiv 2310.02588, Fig. 1). The N passes of the
definition are replaced by an exact form where there is one (`forms.py` tells which serves):

- `closed_form.py`: the last block, where the head reads prefix tokens alone;
- `collapse.py`: the masked residual at any block, where attention has no position term;
- `definition.py`: everything else, batched, at the price of the definition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from explainer.closed_form import closed_form
from explainer.collapse import collapsed
from explainer.definition import definition
from explainer.forms import Form, default_form, form_at
from explainer.maps import normalise
from explainer.masks import masks_of
from explainer.models import VitClassifier
from explainer.passes import Passes, at_once, evenly
from explainer.scores import Target, class_scores, select_targets
from explainer.structure import tokens_entering

Precision = Literal["float32", "mixed"]
# bfloat16 has a wider range, but an eighth of the digits that tell masks apart (docs/reciprocam.md)
MIXED = torch.float16


class PrecisionError(ValueError):
    """The model's activations do not fit into the precision that was asked for."""


@dataclass(frozen=True)
class ReciproCam:
    """How a saliency map is made; the defaults are what docs/reciprocam.md recommends.

    `block`: the transformer block whose attention input is masked, counted from the end (-1, -2).
    None is -2, or -1 where only that has a cheap exact form.
    `residual`: what attention's output is added to: x itself (`kept`, the paper) or the masked x.
    `mask`: the window that stays: the 3x3 kernel around the patch, or the single token.
    `score`: the target's log-odds under the softmax, which rank like its probability, or its logit.
    """

    block: int | None = None
    residual: Literal["masked", "kept"] = "masked"
    mask: Literal["3x3", "1x1"] = "3x3"
    score: Literal["log_odds", "logit"] = "log_odds"

    @classmethod
    def variant(cls, name: Literal["default", "paper", "authors"]) -> "ReciproCam":
        """The convention of arXiv 2310.02588 (Fig. 1), of its authors' code, or the default.

        Both score by the probability, which log-odds rank like.
        """
        blocks = {"default": None, "paper": -1, "authors": -2}
        return cls(blocks[name], "masked" if name == "default" else "kept")

    def form(self, model: VitClassifier) -> Form:
        """The exact form that serves `model`, and its block. Raises ValueError for a wrong one."""
        depth = len(model.vit.blocks)
        if self.block is None:
            return default_form(model, self.residual)
        if not -depth <= self.block <= -1:
            raise ValueError(f"block counts from the end, -{depth} to -1 here; got {self.block}")
        return form_at(model, self.block, self.residual)

    def resolved(self, model: VitClassifier) -> "ReciproCam":
        """The same with the block that is used on `model`."""
        return replace(self, block=self.form(model).block)

    def check(self, model: VitClassifier, *, allow_definition: bool = False) -> None:
        """Raise ValueError, with the reason and the cost, where this is not to be had cheaply."""
        form = self.form(model)
        if self.score == "log_odds" and model.classes < 2:
            raise ValueError(
                "log-odds compare a class with the others, and this model has one; use score logit "
                "(--score logit)"
            )
        if form.name != "definition" or allow_definition:
            return
        raise ValueError(
            f"{model.name} at block {form.block} has no cheap exact form, because {form.reason}: "
            f"by the definition an image costs about {form.passes(model):.0f} forward passes; "
            f"allow the definition (--allow-definition){self._cheaper(model)}"
        )

    def _cheaper(self, model: VitClassifier) -> str:
        """What else is exact and cheap on `model`, as the end of a sentence."""
        options = [
            replace(self, block=block, residual=residual)
            for block in (-2, -1)
            for residual in ("masked", "kept")
            if -block <= len(model.vit.blocks)
        ]
        cheap = [option for option in options if option.form(model).name != "definition"]
        if not cheap:
            return ""
        return f", or use block {cheap[0].block} with residual {cheap[0].residual}"


@dataclass(frozen=True)
class Explanation:
    """Explanations of a batch.

    `logits`: of the unmasked images, all classes. `targets`: the explained classes.
    `scores`: each target's score for each patch's mask, on the token grid.
    """

    logits: Float[Tensor, "batch classes"]
    targets: Int[Tensor, "batch targets"]
    scores: Float[Tensor, "batch targets rows columns"]

    @classmethod
    def concatenated(cls, parts: Sequence["Explanation"]) -> "Explanation":
        """Explanations of consecutive parts of a batch as that of the whole."""
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat([part.scores for part in parts]),
        )

    @property
    def is_finite(self) -> Bool[Tensor, " batch"]:
        """Which images have finite logits, and scores whose range is finite."""
        ranges = self.scores.amax((-2, -1)) - self.scores.amin((-2, -1))
        return self.logits.isfinite().all(-1) & ranges.isfinite().all(-1)

    def only(self, chosen: Bool[Tensor, " batch"]) -> "Explanation":
        """Explanations of some images of the batch."""
        return Explanation(self.logits[chosen], self.targets[chosen], self.scores[chosen])

    @property
    def saliency(self) -> Float[Tensor, "batch targets rows columns"]:
        """The maps in [0, 1]; a constant map is all zeros."""
        return normalise(self.scores)


@torch.inference_mode()
def explain(
    model: VitClassifier,
    crops: UInt8[Tensor, "batch 3 height width"],
    *,
    target: Target | str = "predicted",
    labels: Int[Tensor, " batch"] | None = None,
    method: ReciproCam | None = None,
    precision: Precision = "float32",
    allow_definition: bool = False,
) -> Explanation:
    """Explain a batch of crops: which patches carry the score of each target class.

    `labels` are class indices, needed for target `label` only. `precision`: the model's own, or
    `mixed`, where matrix products and convolutions are in float16, and norms, softmax, residuals,
    the classifier and the scores in the model's own; norms and residuals of collapsed sequences are
    in float16 too. Raises ValueError where the target asks for what is not there, or `method` has
    no cheap exact form on `model`, unless `allow_definition`, and PrecisionError where float16 is
    too narrow for the model. The model is not changed.
    """
    method = method or ReciproCam()
    method.check(model, allow_definition=allow_definition)
    target = Target.parse(target) if isinstance(target, str) else target
    with torch.autocast(crops.device.type, MIXED, enabled=precision == "mixed"):
        size = _images_at_once(model, crops)
        batches = crops.split(size)
        of_batches = [None] * len(batches) if labels is None else labels.split(size)
        parts = [
            _explained(model, images, target, their_labels, method)
            for images, their_labels in zip(batches, of_batches, strict=True)
        ]
    explained = parts[0] if len(parts) == 1 else Explanation.concatenated(parts)
    # A sum is finite where all of its terms are, and takes a GPU fewer steps than looking at each.
    if precision == "mixed" and not math.isfinite(explained.logits.sum() + explained.scores.sum()):
        raise PrecisionError(
            f"{model.name} has activations beyond float16, which mixed precision computes in; use "
            "precision float32"
        )
    return explained


def _images_at_once(model: VitClassifier, crops: UInt8[Tensor, "batch 3 height width"]) -> int:
    """On a CPU as few equal parts of a batch as stay in its caches inside an MLP; on a GPU all.

    Larger tensors are given back to the system and asked for anew in every block, which costs more
    than what longer products gain.
    """
    if crops.device.type != "cpu" or len(crops) == 0:
        return max(1, len(crops))
    tokens = model.prefix + model.patches
    parameter = next(model.vit.parameters())
    inside_mlp = 4 * tokens * int(model.vit.embed_dim) * parameter.element_size()
    return evenly(len(crops), at_once(inside_mlp, parameter))


def _explained(
    model: VitClassifier,
    crops: UInt8[Tensor, "batch 3 height width"],
    target: Target,
    labels: Int[Tensor, " batch"] | None,
    method: ReciproCam,
) -> Explanation:
    passes = _passes(model, crops, method)
    targets = select_targets(passes.unmasked, target, labels)
    scores = passes.unmasked.new_empty(*targets.shape, model.patches)
    for part in passes.masked:
        of_part = class_scores(part.logits, targets[part.images], method.score)
        scores[part.images].index_copy_(2, part.centres, of_part.transpose(1, 2))
    return Explanation(passes.unmasked, targets, scores.unflatten(-1, model.grid))


def _passes(
    model: VitClassifier, crops: UInt8[Tensor, "batch 3 height width"], method: ReciproCam
) -> Passes:
    form = method.form(model)
    images = model.normalise(crops)
    entering = tokens_entering(model.vit, images, len(model.vit.blocks) + form.block)
    masks = masks_of(model.grid, method.mask, images.dtype, images.device)
    if form.name == "closed form":
        return closed_form(model, entering, masks)
    if form.name == "collapse":
        return collapsed(model, entering, masks)
    return definition(model, entering, masks, method.residual)
