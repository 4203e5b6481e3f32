"""From a block's tokens to logits, where each token may stand for several equal ones."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from explainer.attention import LinearAttention, latent_pool, read_out, short_sequences
from explainer.models import VitClassifier
from explainer.structure import TimmModule, first_pooled, pooling


def logits_from(
    model: VitClassifier,
    tokens: Float[Tensor, "sequences tokens width"],
    first: int,
    log_counts: Float[Tensor, " tokens"],
) -> Float[Tensor, "sequences classes"]:
    """Run blocks `first` to the last, without position terms, and the head.

    `log_counts` are the logarithms of how many equal tokens each token stands for. Where the head
    reads prefix tokens alone, the last block is computed for them alone.
    """
    blocks = list(model.vit.blocks[first:])
    for i, block in enumerate(blocks):
        attention = LinearAttention.of(block) if pooling(model.vit) == "token" else None
        if i == len(blocks) - 1 and attention is not None and not attention.normed:
            tokens = read_out(block, attention, tokens, model.readout, log_counts)
        else:
            with short_sequences():
                tokens = block(tokens, attn_mask=log_counts[None, None, None])
    return head(model.vit, tokens, log_counts)


def head(
    vit: TimmModule,
    tokens: Float[Tensor, "sequences tokens width"],
    log_counts: Float[Tensor, " counted"],
) -> Float[Tensor, "sequences classes"]:
    """timm's final norm, pooling and classifier, never in reduced precision.

    Attention pooling is in that of the blocks, which it is like. Token pooling reads leading
    tokens, and needs no others to be there.
    """
    in_full = partial(torch.autocast, tokens.device.type, enabled=False)
    with in_full():
        tokens = vit.norm(tokens)
        if pooling(vit) == "token":
            return vit.forward_head(tokens)
    first = first_pooled(vit)
    tokens, log_counts = tokens[:, first:], log_counts[first:]
    pooled = latent_pool(vit.attn_pool, tokens, log_counts) if pooling(vit) == "map" else None
    with in_full():
        pooled = log_counts.softmax(-1) @ tokens if pooled is None else pooled
        return vit.head(vit.head_drop(vit.fc_norm(pooled)))
