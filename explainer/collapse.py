"""Masked residual, no position in attention: all fully masked tokens of a sequence are alike.

They are alike when they enter the masked block, since they and what attention reads of them are
zero, and stay alike through any number of blocks. (Where attention turns queries and keys by their
position but adds no bias to them, zeros stay zeros, and tokens stay alike through one block.) So a
sequence holds its prefix tokens, its window and one token for all the others, whose number m enters
attention as a logarithm: m equal scores s weigh like one score s + log m.

Shapes: B images, n masks of a chunk, B n sequences of S = prefix + window + 1 distinct tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from explainer.attention import LinearAttention
from explainer.head import logits_from
from explainer.masks import Masks
from explainer.models import VitClassifier
from explainer.passes import MaskLogits, Passes, masks_at_once
from explainer.structure import Entering, TimmModule, attention_inputs, finish, reading


@dataclass(frozen=True)
class Distinct:
    """The distinct tokens of masked sequences: which, how much of each, and log of how many.

    The last stands for all the others, with weight 0; it is left out where there are none.
    """

    index: Int[Tensor, "masks distinct"]
    weight: Float[Tensor, "masks distinct"]
    log_counts: Float[Tensor, " distinct"]

    @classmethod
    def of(cls, masks: Masks, model: VitClassifier) -> "Distinct":
        others = model.patches - masks.window
        rest = 1 if others else 0
        shape = (len(masks), -1)
        prefix = torch.arange(model.prefix, device=masks.cells.device).expand(shape)
        none = prefix.new_zeros(1).expand(len(masks), rest)
        weight = masks.weight
        log_counts = weight.new_zeros(model.prefix + masks.window + rest)
        if others:
            log_counts[-1] = math.log(others)
        return cls(
            torch.cat([prefix, masks.cells + model.prefix, none], dim=1),
            torch.cat([torch.ones_like(prefix).to(weight), weight, none.to(weight)], dim=1),
            log_counts,
        )


def collapsed(model: VitClassifier, entering: Entering, groups: Sequence[Masks]) -> Passes:
    """Logits by sequences of distinct tokens; `entering` enters the masked block."""
    first = len(model.vit.blocks) - len(entering.positions)
    block = model.vit.blocks[first]
    attention = LinearAttention.of(block)
    masked: _SharedBlock | _Block = _Block(block, entering.tokens)
    if attention is not None and not attention.normed:
        masked = _SharedBlock(block, attention, entering)
    everything = entering.tokens.new_zeros(entering.tokens.shape[1])
    unmasked = logits_from(model, masked.unmasked(), first + 1, everything)
    return Passes(unmasked, _chunks(model, masked, groups, first + 1))


def _chunks(
    model: VitClassifier, masked: "_SharedBlock | _Block", groups: Sequence[Masks], later: int
) -> Iterator[MaskLogits]:
    tokens = masked.tokens
    for group in groups:
        distinct = model.prefix + group.window + 1
        for masks in group.split(masks_at_once(4 * tokens[:, 0].nbytes * distinct, tokens)):
            sequences = Distinct.of(masks, model)
            after = masked(sequences).flatten(0, 1)
            logits = logits_from(model, after, later, sequences.log_counts)
            yield MaskLogits(masks.centres, logits.unflatten(0, (len(tokens), -1)))


class _Block:
    """The masked block of any kind, run as timm wrote it."""

    def __init__(self, block: TimmModule, tokens: Float[Tensor, "batch tokens width"]) -> None:
        self.block, self.tokens = block, tokens
        self.inputs = attention_inputs(block, tokens)

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        return self.block(self.tokens)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        weight = distinct.weight[..., None]
        inputs = [(y[:, distinct.index] * weight).flatten(0, 1) for y in self.inputs]
        residual = (self.tokens[:, distinct.index] * weight).flatten(0, 1)
        bias = distinct.log_counts[None, None, None]
        after = reading(self.block, inputs)(residual, attn_mask=bias)
        return after.unflatten(0, (len(self.tokens), -1))


class _SharedBlock:
    """The masked block where attention is linear in the mask: all masks share its projections.

    The score of token a for token b is g_a g_b q_a.k_b + g_b b_q.k_b, with queries q and keys k
    without their biases, and what is the same for all b left out, since it cancels in the softmax.
    """

    def __init__(
        self,
        block: TimmModule,
        attention: LinearAttention,
        entering: Entering,
    ) -> None:
        self.block, self.attention, self.tokens = block, attention, entering.tokens
        y = block.norm1(entering.tokens)
        scale, position = attention.attn.scale, entering.positions[0]
        query, key = attention.query.linear(y) * scale, attention.key.linear(y)
        self.value = attention.value.linear(y)
        turned = attention.placed(query, position), attention.placed(key, position)
        self.pairs = turned[0] @ turned[1].transpose(-2, -1)
        self.from_bias = (key @ attention.query.bias[..., None] * scale).squeeze(-1)

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        share = (self.pairs + self.from_bias[:, :, None]).softmax(-1)
        return self._finish(self.tokens, share @ self.value)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        index, weight = distinct.index, distinct.weight
        pair = (index[:, :, None] * self.tokens.shape[1] + index[:, None]).flatten()
        scores = self.pairs.flatten(2).index_select(2, pair).unflatten(2, (*index.shape, -1))
        scores = scores * weight[..., None] + self.from_bias[:, :, index][:, :, :, None]
        share = (scores * weight[:, None] + distinct.log_counts).softmax(-1) * weight[:, None]
        value = self.value.index_select(2, index.flatten()).unflatten(2, index.shape)
        residual = self.tokens[:, index] * weight[..., None]
        return self._finish(residual, (share @ value).transpose(1, 2))

    def _finish(
        self,
        residual: Float[Tensor, "*batch tokens width"],
        mixed: Float[Tensor, "*batch heads tokens head_width"],
    ) -> Float[Tensor, "*batch tokens width"]:
        mixed = mixed + self.attention.value.bias[:, None]
        return finish(self.block, residual, self.attention.out(mixed))
