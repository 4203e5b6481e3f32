"""ViT-ReciproCAM by its definition: one masked forward pass a patch, nothing clever.

Every form of `explainer.reciprocam` is tested against this file, so it shares no code with it: it
runs timm's own model, whole, one mask after the other, and changes what the masked block reads.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from explainer.structure import TimmModule

KERNEL_3X3 = ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16))
POST_NORM = ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm")


def mask_weights(
    grid: tuple[int, int], row: int, column: int, mask: Literal["3x3", "1x1"]
) -> Float[Tensor, "rows columns"]:
    """What each patch token is multiplied by in the mask of the patch at `row`, `column`.

    The 3x3 window is cropped at the borders and not renormalised (authors' code, see
    docs/reciprocam.md): its centre weighs 1/4, a corner's window sums to 9/16.
    """
    weights = torch.zeros(grid, dtype=torch.float64)
    if mask == "1x1":
        weights[row, column] = 1.0
        return weights
    for row_offset in (-1, 0, 1):
        for column_offset in (-1, 0, 1):
            r, c = row + row_offset, column + column_offset
            if 0 <= r < grid[0] and 0 <= c < grid[1]:
                weights[r, c] = KERNEL_3X3[row_offset + 1][column_offset + 1]
    return weights


@torch.inference_mode()
def masked_logits(
    vit: TimmModule,
    images: Float[Tensor, "batch 3 height width"],
    grid: tuple[int, int],
    *,
    block: int,
    residual: Literal["kept", "masked"],
    mask: Literal["3x3", "1x1"],
) -> Float[Tensor, "batch patches classes"]:
    """Logits of every class for every patch's mask, by one masked forward pass a patch.

    At `block`, what attention reads is multiplied by the mask on the patch tokens, and the prefix
    tokens (class, distillation, registers) stay whole. Attention reads y = norm1(x), or x itself in
    a post-norm block. The residual that its output is added to is x (`kept`: Fig. 1 of arXiv
    2310.02588) or x masked alike (`masked`: openvino_xai's ViTReciproCAM). `images` are normalised
    as the model expects them; `vit` is a plain timm transformer of `grid` patches in evaluation
    mode.
    """
    prefix = vit.num_prefix_tokens
    every_patch = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            patches = mask_weights(grid, row, column, mask).flatten()
            weights = torch.cat([torch.ones(prefix, dtype=torch.float64), patches]).to(images)
            with masked_block(vit.blocks[block], weights[:, None], residual):
                every_patch.append(vit(images))
    return torch.stack(every_patch, dim=1)


@contextmanager
def masked_block(
    block: TimmModule, weights: Float[Tensor, "tokens 1"], residual: Literal["kept", "masked"]
) -> Iterator[None]:
    """Within, `block` runs as timm wrote it, but its attention reads masked tokens."""
    norms: list[TimmModule] = []
    if hasattr(block, "attns"):  # ParallelThingsBlock: several attentions, each with its norm
        norms = [attn.norm for attn in block.attns]
    elif hasattr(block, "in_norm"):  # ParallelScalingBlock: attention and MLP read one norm
        norms = [block.in_norm]
    elif type(block).__name__ not in POST_NORM:
        norms = [block.norm1]
    read: dict[TimmModule, Tensor] = {}

    def enter(_block: TimmModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        read.update({norm: norm.forward(x) * weights for norm in norms})
        read[block] = x * weights
        return (x if residual == "kept" else x * weights, *rest)

    with ExitStack() as hooks:
        hooks.enter_context(_removed(block.register_forward_pre_hook(enter)))
        for norm in norms:
            hook = norm.register_forward_hook(lambda module, _inputs, _output: read[module])
            hooks.enter_context(_removed(hook))
        if not norms:
            hook = block.attn.register_forward_pre_hook(lambda _attn, _inputs: (read[block],))
            hooks.enter_context(_removed(hook))
        yield


@contextmanager
def _removed(hook: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


def log_odds(logits: Float[Tensor, "... classes"], target: int) -> Float[Tensor, "..."]:
    """log p / (1 - p) of `target` under the softmax: its logit against all others together."""
    others = [c for c in range(logits.shape[-1]) if c != target]
    return logits[..., target] - torch.logsumexp(logits[..., others], dim=-1)
