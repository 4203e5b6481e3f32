"""From a block's tokens to logits, where each token may stand for several equal ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from explainer.attention import LinearAttention, latent_pool, read_out, short_sequences
from explainer.models import VitClassifier
from explainer.structure import TimmModule, first_pooled, in_dtype, pooling, with_children


@dataclass(frozen=True)
class LastBlocks:
    """The model's last blocks, where they take no positions, for tokens that stand for several.

    Where the head reads prefix tokens alone, the last block is computed for them alone.
    """

    model: VitClassifier
    blocks: Sequence[TimmModule]

    def in_dtype(self, dtype: torch.dtype) -> "LastBlocks":
        return LastBlocks(self.model, [in_dtype(block, dtype) for block in self.blocks])

    @cached_property
    def reading(self) -> LinearAttention | None:
        """The attention of the last block where that is computed for what is read alone."""
        if not self.blocks or pooling(self.model.vit) != "token":
            return None
        attention = LinearAttention.of(self.blocks[-1])
        return None if attention is None or attention.normed else attention

    def __call__(
        self,
        tokens: Float[Tensor, "sequences tokens width"],
        log_counts: Float[Tensor, " tokens"],
    ) -> Float[Tensor, "sequences read width"]:
        """`log_counts` are the logarithms of how many equal tokens each token stands for."""
        whole = self.blocks if self.reading is None else self.blocks[:-1]
        with short_sequences():
            for block in whole:
                tokens = block(tokens, attn_mask=log_counts[None, None, None].to(tokens))
        if self.reading is None:
            return tokens
        return read_out(self.blocks[-1], self.reading, tokens, self.model.readout, log_counts)


def head(
    vit: TimmModule,
    tokens: Float[Tensor, "sequences tokens width"],
    log_counts: Float[Tensor, " counted"],
) -> Float[Tensor, "sequences classes"]:
    """timm's final norm, pooling and classifier, in the precision of `log_counts`.

    Attention pooling is in that of the blocks, which it is like. Token pooling reads leading
    tokens, and needs no others to be there. Under autocast on a GPU, whose full precision is slow,
    a linear classifier is split.
    """
    device = tokens.device.type
    in_full = partial(torch.autocast, device, enabled=False)
    if device == "cuda" and torch.is_autocast_enabled(device):
        vit = _with_split_classifiers(vit, torch.get_autocast_dtype(device))
    with in_full():
        tokens = vit.norm(tokens.to(log_counts))
        if pooling(vit) == "token":
            return vit.forward_head(tokens)
    first = first_pooled(vit)
    tokens, log_counts = tokens[:, first:], log_counts[first:]
    pooled = latent_pool(vit.attn_pool, tokens, log_counts) if pooling(vit) == "map" else None
    with in_full():
        pooled = log_counts.softmax(-1) @ tokens if pooled is None else pooled
        return vit.head(vit.head_drop(vit.fc_norm(pooled)))


def _with_split_classifiers(vit: TimmModule, dtype: torch.dtype) -> TimmModule:
    classifiers = {name: vit._modules.get(name) for name in ("head", "head_dist")}
    split = {
        name: SplitClassifier(linear, dtype)
        for name, linear in classifiers.items()
        if type(linear) is nn.Linear
    }
    return with_children(vit, **split)


class SplitClassifier(nn.Module):
    """In place of a linear classifier: products of few digits, for features that keep all theirs.

    A feature is a rounded number and what that leaves, so one product of twice the width sums both.
    The weights are rounded, alike for all masks.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear, self.dtype = linear, dtype

    def forward(self, features: Float[Tensor, "rows width"]) -> Float[Tensor, "rows classes"]:
        parts = features.new_empty(len(features), 2, features.shape[1], dtype=self.dtype)
        rounded, remainder = parts.unbind(1)
        rounded.copy_(features)
        torch.sub(features, rounded, out=remainder)
        weight = self.linear.weight.to(self.dtype).repeat(1, 2)
        logits = torch.mm(parts.flatten(1), weight.t(), out_dtype=features.dtype)
        return logits if self.linear.bias is None else logits.add_(self.linear.bias)
