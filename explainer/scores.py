"""Which classes are explained, and what number a class gets from logits."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

TARGET_RULE = "predicted, label, top:K (K from 1 to the number of classes) or all"


@dataclass(frozen=True)
class Target:
    """The classes that are explained for an image: `kind` and, for `top`, how many."""

    kind: Literal["predicted", "label", "top", "all"]
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `predicted`, `label`, `top:K` or `all`; anything else is a ValueError."""
        if text == "predicted":
            return cls("predicted")
        if text == "label":
            return cls("label")
        if text == "all":
            return cls("all")
        top = re.fullmatch(r"top:([1-9]\d*)", text)
        if top is None:
            raise ValueError(f"target must be {TARGET_RULE}; got {text!r}")
        return cls("top", int(top.group(1)))

    def per_image(self, classes: int) -> int:
        """How many targets an image has under a model of `classes` classes."""
        if self.kind == "top" and self.count > classes:
            raise ValueError(
                f"target top:{self.count} asks for more classes than the model's {classes}; "
                f"use top:{classes} or all"
            )
        return {"top": self.count, "all": classes}.get(self.kind, 1)


def select_targets(
    logits: Float[Tensor, "batch classes"],
    target: Target,
    labels: Int[Tensor, " batch"] | None,
) -> Int[Tensor, "batch targets"]:
    """The class indices to explain, by falling logit where the target names several.

    Raises ValueError where the target is `label` and no labels are given.
    """
    if target.kind == "label":
        if labels is None:
            raise ValueError("target 'label' explains each image's label; no labels were given")
        return labels[:, None].long()
    count = target.per_image(logits.shape[-1])
    return logits.topk(count, dim=-1).indices


def class_scores(
    logits: Float[Tensor, "batch masks classes"],
    targets: Int[Tensor, "batch targets"],
    score: Literal["log_odds", "logit"],
) -> Float[Tensor, "batch masks targets"]:
    """The score of each target: its log-odds under the softmax, or its logit."""
    index = targets[:, None, :].expand(-1, logits.shape[1], -1)
    chosen = logits.gather(-1, index)
    if score == "logit":
        return chosen
    if targets.shape[1] == 1:
        return chosen - _logsumexp_without(logits, index)
    return chosen - _logsumexp_of_others(logits, chosen, index)


def _logsumexp_without(
    logits: Float[Tensor, "batch masks classes"], left_out: Int[Tensor, "batch masks 1"]
) -> Float[Tensor, "batch masks 1"]:
    """log of the sum of exp over all classes but one."""
    return logits.scatter(-1, left_out, -torch.inf).logsumexp(-1, keepdim=True)


def _logsumexp_of_others(
    logits: Float[Tensor, "batch masks classes"],
    chosen: Float[Tensor, "batch masks targets"],
    index: Int[Tensor, "batch masks targets"],
) -> Float[Tensor, "batch masks targets"]:
    """log of the sum of exp over all classes but the chosen one.

    Taking the chosen class out of the whole sum cancels where it holds nearly all of the mass, so
    the leading class's rest is summed on its own; every other class has p <= 1/2.
    """
    largest, leader = logits.max(-1, keepdim=True)
    without_leader = _logsumexp_without(logits, leader)
    total = torch.logaddexp(largest, without_leader)
    is_leader = index == leader
    share = (chosen - total).exp().masked_fill(is_leader, 0.0)
    return torch.where(is_leader, without_leader, total + torch.log1p(-share))
