"""The sanity check: does a map change where the model's weights are shuffled, and by how much."""

import copy
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from explainer.models import VitClassifier

Stage: TypeAlias = Literal["head", "half", "all"]
# Of a network's parameters: what the cascade from the top comes to after the later blocks.
BEFORE_BLOCKS = (
    *("patch_embed.", "embeds.", "norm_pre.", "blocks.", "cls_token", "reg_token", "dist_token"),
    *("pos_embed", "rel_pos", "shared_rel_pos", "rope"),
)


def randomised(model: VitClassifier, stage: Stage, seed: int) -> VitClassifier:
    """A copy of a model with the values of some of its weights shuffled, each tensor by itself.

    Adebayo et al., Sanity Checks for Saliency Maps (NeurIPS 2018), cascading from the top: `head`
    is the classifier, `half` that and the later half of the blocks, `all` everything.
    """
    vit = copy.deepcopy(model.vit)
    half = len(vit.blocks) // 2
    above = tuple(f"blocks.{number}." for number in range(half, len(vit.blocks)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in vit.named_parameters():
        is_head = name.startswith("head")
        is_upper = name.startswith(above) or not name.startswith(BEFORE_BLOCKS)
        if stage == "all" or is_head or (stage == "half" and is_upper):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return replace(model, vit=vit)


def spearman(
    first: Float[Tensor, "batch rows columns"], second: Float[Tensor, "batch rows columns"]
) -> Float[Tensor, " batch"]:
    """Rank correlation of two maps of each image, ties at their mean rank; NaN for a constant."""
    return pearson(_mean_rank(first.flatten(1)), _mean_rank(second.flatten(1)))


def pearson(
    first: Float[Tensor, "batch cells"], second: Float[Tensor, "batch cells"]
) -> Float[Tensor, " batch"]:
    """Pearson's correlation; NaN where one side is constant."""
    # Not by the norms: a constant less its mean, which is rounded, need not be 0.
    constant = (first == first[:, :1]).all(1) | (second == second[:, :1]).all(1)
    first, second = (each - each.mean(1, keepdim=True) for each in (first, second))
    norms = first.norm(dim=1) * second.norm(dim=1)
    return ((first * second).sum(1) / norms).masked_fill(constant, torch.nan)


def _mean_rank(values: Float[Tensor, "batch cells"]) -> Float[Tensor, "batch cells"]:
    below = (values[:, :, None] > values[:, None, :]).sum(2)
    ties = (values[:, :, None] == values[:, None, :]).sum(2)
    return below + (ties - 1) / 2
