"""ViT-ReciproCAM by its definition: one masked forward pass a patch, nothing clever.

Every fast form of `explainer.reciprocam` is tested against this file, so it shares no code with it:
it calls timm's own modules, one mask after the other.
"""

from typing import Literal

import torch
from jaxtyping import Float
from timm.models import VisionTransformer
from torch import Tensor

KERNEL_3X3 = ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16))


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
    vit: VisionTransformer,
    images: Float[Tensor, "batch 3 height width"],
    *,
    block: int,
    residual: Literal["kept", "masked"],
    mask: Literal["3x3", "1x1"],
) -> Float[Tensor, "batch patches classes"]:
    """Logits of every class for every patch's mask, by one masked forward pass a patch.

    At `block`, y = norm1(x) of the patch tokens is multiplied by the mask before attention and the
    prefix tokens (class, distillation, registers) stay whole. The residual that attention's output
    is added to is x itself (`kept`: Fig. 1 of arXiv 2310.02588) or x masked alike (`masked`:
    openvino_xai's ViTReciproCAM). `images` are normalised as the model expects them; `vit` is a
    timm VisionTransformer in evaluation mode.
    """
    x = vit.patch_embed(images)
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(x)))
    blocks = list(vit.blocks)
    first = block % len(blocks)
    for earlier in blocks[:first]:
        x = earlier(x)

    prefix = vit.num_prefix_tokens
    grid = vit.patch_embed.grid_size
    masked_block = blocks[first]
    every_patch = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            weights = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
            weights[prefix:] = mask_weights(grid, row, column, mask).flatten().to(x)
            y = masked_block.norm1(x) * weights[:, None]
            z = x if residual == "kept" else x * weights[:, None]
            z = z + masked_block.ls1(masked_block.attn(y))
            z = z + masked_block.ls2(masked_block.mlp(masked_block.norm2(z)))
            for later in blocks[first + 1 :]:
                z = later(z)
            every_patch.append(vit.forward_head(vit.norm(z)))
    return torch.stack(every_patch, dim=1)


def log_odds(logits: Float[Tensor, "... classes"], target: int) -> Float[Tensor, "..."]:
    """log p / (1 - p) of `target` under the softmax: its logit against all others together."""
    others = [c for c in range(logits.shape[-1]) if c != target]
    return logits[..., target] - torch.logsumexp(logits[..., others], dim=-1)
