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
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from explainer.attention import LinearAttention
from explainer.head import logits_from
from explainer.masks import Masks
from explainer.models import VitClassifier
from explainer.passes import MaskLogits, Passes, at_once
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
    later = len(model.vit.blocks) - len(entering.positions) + 1
    block = model.vit.blocks[later - 1]
    attention = LinearAttention.of(block)
    masked: _SharedBlock | _Block
    if attention is None or attention.normed:
        masked = _Block(block, entering.tokens, attention_inputs(block, entering.tokens))
    else:
        masked = _SharedBlock.of(block, attention, entering)
    everything = entering.tokens.new_zeros(entering.tokens.shape[1])
    unmasked = logits_from(model, masked.unmasked(), later, everything)
    return Passes(unmasked, _chunks(model, masked, groups, later))


def _chunks(
    model: VitClassifier, masked: "_SharedBlock | _Block", groups: Sequence[Masks], later: int
) -> Iterator[MaskLogits]:
    """All masks of as many images as share their work within memory, then of the next ones."""
    for start in range(0, len(masked.tokens), masked.images_at_once):
        images = slice(start, start + masked.images_at_once)
        of_images = masked.select(images)
        tokens = of_images.tokens
        for group in groups:
            hidden = 4 * tokens[:, 0].nbytes * (model.prefix + group.window + 1)
            logits_bytes = len(tokens) * model.classes * tokens.element_size()
            for masks in group.split(at_once(max(hidden, logits_bytes), tokens)):
                sequences = Distinct.of(masks, model)
                after = of_images(sequences).flatten(0, 1)
                logits = logits_from(model, after, later, sequences.log_counts)
                yield MaskLogits(images, masks.centres, logits.unflatten(0, (len(tokens), -1)))


@dataclass(frozen=True)
class _Block:
    """The masked block of any kind, run as timm wrote it on what its attentions read."""

    block: TimmModule
    tokens: Float[Tensor, "batch tokens width"]
    inputs: Sequence[Float[Tensor, "batch tokens width"]]

    @property
    def images_at_once(self) -> int:
        return len(self.tokens)

    def select(self, images: slice) -> "_Block":
        return _Block(self.block, self.tokens[images], [each[images] for each in self.inputs])

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        return self.block(self.tokens)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        weight = distinct.weight[..., None]
        inputs = [(y[:, distinct.index] * weight).flatten(0, 1) for y in self.inputs]
        residual = (self.tokens[:, distinct.index] * weight).flatten(0, 1)
        bias = distinct.log_counts[None, None, None]
        after = reading(self.block, inputs)(residual, attn_mask=bias)
        return after.unflatten(0, (len(self.tokens), -1))


@dataclass(frozen=True)
class _SharedBlock:
    """The masked block where attention is linear in the mask: all masks share its projections.

    The score of token a for token b is g_b (g_a q_a.k_b + b_q.k_b), with queries and keys without
    their biases: what the key's bias adds is the same for all b and cancels in the softmax.
    """

    block: TimmModule
    attention: LinearAttention
    tokens: Float[Tensor, "batch tokens width"]
    query: Float[Tensor, "batch heads tokens head_width"]
    key: Float[Tensor, "batch heads tokens head_width"]
    value: Float[Tensor, "batch heads tokens head_width"]

    @classmethod
    def of(
        cls, block: TimmModule, attention: LinearAttention, entering: Entering
    ) -> "_SharedBlock":
        """Project what enters, once; queries are scaled, and turned as keys by their positions."""
        y, position = block.norm1(entering.tokens), entering.positions[0]
        query = attention.placed(attention.query.linear(y), position) * attention.attn.scale
        key = attention.placed(attention.key.linear(y), position)
        return cls(block, attention, entering.tokens, query, key, attention.value.linear(y))

    @property
    def images_at_once(self) -> int:
        """Bounded by the scores of all pairs of tokens, which grow with the square of the grid."""
        heads, tokens = self.query.shape[1:3]
        return at_once(heads * tokens**2 * self.query.element_size(), self.query)

    def select(self, images: slice) -> "_SharedBlock":
        parts = (each[images] for each in (self.tokens, self.query, self.key, self.value))
        return _SharedBlock(self.block, self.attention, *parts)

    @property
    def query_bias(self) -> Float[Tensor, "heads 1 head_width"]:
        return self.attention.query.bias[:, None] * self.attention.attn.scale

    @cached_property
    def pairs(self) -> Float[Tensor, "batch heads tokens_squared"]:
        return (self.query @ self.key.transpose(-2, -1)).flatten(2)

    @cached_property
    def from_bias(self) -> Float[Tensor, "batch heads tokens"]:
        return (self.query_bias @ self.key.transpose(-2, -1)).squeeze(-2)

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        query = self.query + self.query_bias
        mixed = F.scaled_dot_product_attention(query, self.key, self.value, scale=1.0)
        return self._finish(self.tokens, mixed)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        index, weight = distinct.index, distinct.weight
        pair = (index[:, :, None] * self.tokens.shape[1] + index[:, None]).flatten()
        scores = self.pairs.index_select(2, pair).unflatten(2, (*index.shape, -1))
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
