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

from explainer.attention import LinearAttention, as_multiplied, short_sequences
from explainer.head import logits_from
from explainer.masks import Masks, levels_of
from explainer.models import VitClassifier
from explainer.passes import MaskLogits, Passes, at_once
from explainer.structure import Entering, TimmModule, attention_inputs, finish, reading

# Devices that are faster at one large product, mostly with zeros, than at many small ones, and how
# many numbers of 16 bits they load at a time.
DENSE, ALIGNED = frozenset({"cuda"}), 8


@dataclass(frozen=True)
class Distinct:
    """The distinct tokens of masked sequences: which, how much of each, and log of how many.

    The last stands for all the others, with weight 0; it is left out where there are none. So the
    first `kept` of them are what a mask leaves.
    """

    index: Int[Tensor, "masks distinct"]
    weight: Float[Tensor, "masks distinct"]
    log_counts: Float[Tensor, " distinct"]
    kept: int

    @classmethod
    def of(cls, masks: Masks, model: VitClassifier) -> "Distinct":
        others = model.patches - masks.window
        rest = 1 if others else 0
        shape = (len(masks), -1)
        prefix = torch.arange(model.prefix, device=masks.cells.device).expand(shape)
        none = prefix.new_zeros(1).expand(len(masks), rest)
        weight = masks.weight
        one_each = weight.new_zeros(model.prefix + masks.window)
        log_counts = F.pad(one_each, (0, rest), value=math.log(others)) if others else one_each
        return cls(
            torch.cat([prefix, masks.cells + model.prefix, none], dim=1),
            torch.cat([torch.ones_like(prefix).to(weight), weight, none.to(weight)], dim=1),
            log_counts,
            model.prefix + masks.window,
        )

    def over_tokens(
        self, share: Float[Tensor, "*batch masks distinct"], tokens: int
    ) -> Float[Tensor, "*batch masks tokens"]:
        """What each mask's distinct tokens have, given to the tokens that they are."""
        kept = share[..., : self.kept]
        dense = share.new_zeros(*share.shape[:-1], tokens)
        return dense.scatter_(-1, self.index[:, : self.kept].expand(kept.shape), kept)


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
            sequence = of_images.token_bytes * (model.prefix + group.window + 1)
            logits_bytes = len(tokens) * model.classes * tokens.element_size()
            for masks in group.split(at_once(max(sequence, logits_bytes), tokens)):
                sequences = Distinct.of(masks, model)
                after = of_images(sequences).flatten(0, 1)
                logits = logits_from(model, after, later, sequences.log_counts)
                yield MaskLogits(images, masks.centres, logits.unflatten(0, (len(tokens), -1)))


def _hidden_bytes(tokens: Float[Tensor, "batch tokens width"]) -> int:
    """What a token of each image takes inside a common MLP."""
    return 4 * tokens[:, 0].nbytes


@dataclass(frozen=True)
class _Block:
    """The masked block of any kind, run as timm wrote it on what its attentions read."""

    block: TimmModule
    tokens: Float[Tensor, "batch tokens width"]
    inputs: Sequence[Float[Tensor, "batch tokens width"]]

    @property
    def images_at_once(self) -> int:
        return len(self.tokens)

    @property
    def token_bytes(self) -> int:
        return _hidden_bytes(self.tokens)

    def select(self, images: slice) -> "_Block":
        return _Block(self.block, self.tokens[images], [each[images] for each in self.inputs])

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        return self.block(self.tokens)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        weight = distinct.weight[..., None]
        inputs = [(y[:, distinct.index] * weight).flatten(0, 1) for y in self.inputs]
        residual = (self.tokens[:, distinct.index] * weight).flatten(0, 1)
        bias = distinct.log_counts[None, None, None]
        with short_sequences():
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

    @property
    def token_bytes(self) -> int:
        """Of all images: what the MLP makes of a distinct token, or its share of all tokens."""
        return max(_hidden_bytes(self.tokens), self.query[..., 0].nbytes)

    def select(self, images: slice) -> "_SharedBlock":
        parts = (each[images] for each in (self.tokens, self.query, self.key, self.value))
        return _SharedBlock(self.block, self.attention, *parts)

    @property
    def query_bias(self) -> Float[Tensor, "heads 1 head_width"]:
        return self.attention.query.bias[:, None] * self.attention.attn.scale

    @cached_property
    def pairs(self) -> Float[Tensor, "batch heads tokens_squared"]:
        return (self.query @ self.key_across).flatten(2)

    @property
    def levels(self) -> Float[Tensor, " levels"]:
        return levels_of(self.tokens.dtype, self.tokens.device)

    @cached_property
    def by_level(self) -> Float[Tensor, "batch levels_tokens width"]:
        """All tokens times each weight that masks have: what masks leave is gathered from them."""
        return (self.tokens[:, None] * self.levels[:, None, None]).flatten(1, 2)

    @cached_property
    def padded_value(self) -> Float[Tensor, "batch heads padded head_width"]:
        """Values with zeros behind them, so that a GPU multiplies them by whole vectors."""
        return F.pad(self.value, (0, 0, 0, -self.value.shape[2] % ALIGNED))

    @cached_property
    def from_bias(self) -> Float[Tensor, "batch heads tokens"]:
        return (self.query_bias @ self.key_across).squeeze(-2)

    @cached_property
    def key_across(self) -> Float[Tensor, "batch heads head_width tokens"]:
        """Keys as the right factor of products, laid out for them once."""
        return self.key.transpose(-2, -1).contiguous()

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
        level = torch.searchsorted(self.levels, weight)
        residual = self.by_level[:, level * self.tokens.shape[1] + index]
        return self._finish(residual, self._mixed(share, distinct).transpose(1, 2))

    def _mixed(
        self, share: Float[Tensor, "batch heads masks distinct distinct"], distinct: Distinct
    ) -> Float[Tensor, "batch heads masks distinct head_width"]:
        """Values, mixed by attention: of the distinct tokens, or of all with zeros for most."""
        if self.tokens.device.type not in DENSE:
            of_masks = self.value.index_select(2, distinct.index.flatten())
            return share @ of_masks.unflatten(2, distinct.index.shape)
        by_mask = as_multiplied(share).transpose(2, 3)
        dense = distinct.over_tokens(by_mask, self.padded_value.shape[2])
        mixed = dense.flatten(2, 3) @ self.padded_value
        return mixed.unflatten(2, dense.shape[2:4]).transpose(2, 3)

    def _finish(
        self,
        residual: Float[Tensor, "*batch tokens width"],
        mixed: Float[Tensor, "*batch heads tokens head_width"],
    ) -> Float[Tensor, "*batch tokens width"]:
        return finish(self.block, residual, self.attention.out(mixed))
