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
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from explainer.attention import (
    DENSE,
    LinearAttention,
    aligned,
    as_multiplied,
    padded,
    short_sequences,
)
from explainer.head import LastBlocks, head
from explainer.masks import Levels, Masks
from explainer.models import VitClassifier
from explainer.passes import MaskLogits, Passes, at_once, evenly
from explainer.structure import Entering, TimmModule, attention_inputs, finish, in_dtype, reading


@dataclass(frozen=True)
class Distinct:
    """The distinct tokens of masked sequences: which, how much of each, and log of how many.

    One stands for all the others, with weight 0 and under the index of one of them; it is left out
    where there are none. `tokens`: how many there are before masking. `level`: the place of each
    weight among the levels of the masks.
    """

    tokens: int
    centres: Int[Tensor, " masks"]
    index: Int[Tensor, "masks distinct"]
    weight: Float[Tensor, "masks distinct"]
    level: Int[Tensor, "masks distinct"]
    log_counts: Float[Tensor, "masks distinct"]

    @cached_property
    def pairs(self) -> Int[Tensor, " all_pairs"]:
        """Which of all pairs of tokens, and of padding, each mask has, one mask after the other."""
        return (self.index[:, :, None] * aligned(self.tokens) + self.index[:, None]).flatten()

    def over_tokens(
        self, share: Shaped[Tensor, "*batch masks distinct"], tokens: int
    ) -> Shaped[Tensor, "*batch masks tokens"]:
        """What each mask's distinct tokens have, given to the tokens that they are."""
        dense = share.new_zeros(*share.shape[:-1], tokens)
        return dense.scatter_(-1, self.index.expand(share.shape), share)


@lru_cache(maxsize=64)
def distinct_chunks(
    groups: tuple[Masks, ...], prefix: int, patches: int, size: int
) -> tuple[Distinct, ...]:
    """The distinct tokens of all masks of `groups`, in chunks of `size` masks.

    They are kept, as `groups` are: making them takes a GPU as many steps as a block.
    """
    length = prefix + min(patches, 1 + max(masks.window for masks in groups))
    parts = [_distinct_of(masks, prefix, patches, length) for masks in groups]
    fields = [torch.cat(field) for field in zip(*parts, strict=True)]
    chunks = zip(*(field.split(size) for field in fields), strict=True)
    return tuple(Distinct(prefix + patches, *chunk) for chunk in chunks)


def _distinct_of(masks: Masks, prefix: int, patches: int, length: int) -> tuple[Tensor, ...]:
    """Fields of `Distinct`, `length` tokens a mask: spare ones weigh nothing and do not count."""
    own, others = prefix + masks.window, patches - masks.window
    counts = [0.0] * own + [math.log(others) if others else 0.0] * (length > own)
    counts += [-torch.inf] * (length - len(counts))
    prefixes = torch.arange(prefix, device=masks.cells.device).expand(len(masks), -1)
    masked = (masks.over_tokens(prefix, prefix + patches) == 0).int().argmax(1, keepdim=True)
    masked = masked.expand(-1, length - own)
    index = torch.cat([prefixes, masks.cells + prefix, masked], dim=1)
    weight = F.pad(F.pad(masks.weight, (prefix, 0), value=1.0), (0, length - own))
    level = torch.searchsorted(weight.new_tensor(masks.levels), weight)
    return masks.centres, index, weight, level, weight.new_tensor(counts).expand_as(weight)


def collapsed(model: VitClassifier, entering: Entering, groups: Sequence[Masks]) -> Passes:
    """Logits by sequences of distinct tokens; `entering` enters the masked block."""
    block, *later = model.vit.blocks[-len(entering.positions) :]
    last = LastBlocks(model, later)
    attention = LinearAttention.of(block)
    masked: _SharedBlock | _Block
    if attention is None or attention.normed:
        masked = _Block(block, entering.tokens, attention_inputs(block, entering.tokens))
    else:
        masked = _SharedBlock.of(block, attention, groups[0].levels, entering)
    everything = entering.tokens.new_zeros(entering.tokens.shape[1])
    unmasked = head(model.vit, last(masked.unmasked(), everything), everything)
    return Passes(unmasked, _chunks(masked.as_multiplied(), last, groups))


def _chunks(
    masked: "_SharedBlock | _Block", last: LastBlocks, groups: Sequence[Masks]
) -> Iterator[MaskLogits]:
    """All masks of as many images as share their work within memory, then of the next ones.

    Masked sequences have weights, residuals and norms in the precision of products: what masks
    change here is large, and there are ten times as many tokens as in a forward pass.
    """
    model, device = last.model, masked.tokens.device.type
    last = last.in_dtype(masked.tokens.dtype)
    for start in range(0, len(masked.tokens), masked.images_at_once):
        images = slice(start, start + masked.images_at_once)
        of_images = masked.select(images)
        for distinct in chain.from_iterable(_sequences(model, of_images, each) for each in groups):
            log_counts = distinct.log_counts[0]  # alike for all masks of a group
            with torch.autocast(device, enabled=False):
                sequences = last(of_images(distinct).flatten(0, 1), log_counts)
            logits = head(model.vit, sequences, log_counts).unflatten(0, (-1, len(distinct.index)))
            yield MaskLogits(images, distinct.centres, logits)


def _sequences(
    model: VitClassifier, masked: "_SharedBlock | _Block", group: Masks
) -> tuple[Distinct, ...]:
    """A group's masks in chunks whose sequences, and their logits, fit into memory."""
    sequence = masked.token_bytes * (model.prefix + group.window + 1)
    logits = len(masked.tokens) * model.classes * group.weight.element_size()
    most = at_once(max(sequence, logits), masked.tokens)
    return distinct_chunks((group,), model.prefix, model.patches, evenly(len(group), most))


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
        """What a token of each image takes inside a common MLP."""
        return 4 * self.tokens[:, 0].nbytes

    def as_multiplied(self) -> "_Block":
        """The same in the precision of products."""
        tokens, inputs = as_multiplied(self.tokens), [as_multiplied(y) for y in self.inputs]
        return _Block(in_dtype(self.block, tokens.dtype), tokens, inputs)

    def select(self, images: slice) -> "_Block":
        return _Block(self.block, self.tokens[images], [each[images] for each in self.inputs])

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        return self.block(self.tokens)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        weight = distinct.weight[..., None].to(self.tokens)
        inputs = [(y[:, distinct.index] * weight).flatten(0, 1) for y in self.inputs]
        residual = (self.tokens[:, distinct.index] * weight).flatten(0, 1)
        bias = distinct.log_counts[0].to(self.tokens)
        with short_sequences():
            after = reading(self.block, inputs)(residual, attn_mask=bias[None, None, None])
        return after.unflatten(0, (len(self.tokens), -1))


@dataclass(frozen=True)
class _SharedBlock:
    """The masked block where attention is linear in the mask: all masks share its projections.

    The score of token a for token b is g_b (g_a q_a.k_b + b_q.k_b), with queries and keys without
    their biases: what the key's bias adds is the same for all b and cancels in the softmax.
    """

    block: TimmModule
    attention: LinearAttention
    levels: Levels
    tokens: Float[Tensor, "batch tokens width"]
    query: Float[Tensor, "batch heads tokens head_width"]
    key: Float[Tensor, "batch heads tokens head_width"]
    value: Float[Tensor, "batch heads tokens head_width"]

    @classmethod
    def of(
        cls, block: TimmModule, attention: LinearAttention, levels: Levels, entering: Entering
    ) -> "_SharedBlock":
        """Project what enters, once; queries are scaled, and turned as keys by their positions."""
        y, position = as_multiplied(block.norm1(entering.tokens)), entering.positions[0]
        query = attention.placed(attention.query.linear(y), position) * attention.attn.scale
        key = attention.placed(attention.key.linear(y), position)
        value = attention.value.linear(y)
        return cls(block, attention, levels, entering.tokens, query, key, value)

    @property
    def images_at_once(self) -> int:
        """Bounded by the scores of all pairs of tokens, which grow with the square of the grid."""
        heads, tokens = self.query.shape[1:3]
        return at_once(heads * tokens**2 * self.query.element_size(), self.query)

    @property
    def token_bytes(self) -> int:
        """Of all images: what the MLP makes of a distinct token, or its share of all tokens."""
        return max(4 * self.tokens[:, 0].nbytes, self.query[..., 0].nbytes)

    def as_multiplied(self) -> "_SharedBlock":
        """The same in the precision of products."""
        tokens = as_multiplied(self.tokens)
        block = in_dtype(self.block, tokens.dtype)
        attention = LinearAttention.of(block) or self.attention
        return replace(self, block=block, attention=attention, tokens=tokens)

    def select(self, images: slice) -> "_SharedBlock":
        parts = (each[images] for each in (self.tokens, self.query, self.key, self.value))
        return _SharedBlock(self.block, self.attention, self.levels, *parts)

    @property
    def query_bias(self) -> Float[Tensor, "heads 1 head_width"]:
        return self.attention.query.bias[:, None] * self.attention.attn.scale

    @cached_property
    def pairs(self) -> Float[Tensor, "batch heads pairs"]:
        return (self.query @ self.padded_key.transpose(-2, -1)).flatten(2)

    def weighted(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        """What masks leave of the tokens: gathered from all of them times each weight."""
        each = torch.arange(len(self.tokens), device=self.tokens.device)[:, None, None]
        row = (distinct.level * len(self.tokens) + each) * distinct.tokens + distinct.index
        return self.by_level.index_select(0, row.flatten()).unflatten(0, row.shape)

    @cached_property
    def by_level(self) -> Float[Tensor, "levels_images_tokens width"]:
        table = self.tokens.new_empty(len(self.levels), *self.tokens.shape)
        for level, of_level in zip(self.levels, table, strict=True):
            torch.mul(self.tokens, level, out=of_level)
        return table.flatten(0, 2)

    @cached_property
    def padded_value(self) -> Float[Tensor, "batch heads padded head_width"]:
        return padded(self.value)

    @cached_property
    def from_bias(self) -> Float[Tensor, "batch heads padded"]:
        return (self.query_bias @ self.padded_key.transpose(-2, -1)).squeeze(-2)

    @cached_property
    def padded_key(self) -> Float[Tensor, "batch heads padded head_width"]:
        return padded(self.key)

    def unmasked(self) -> Float[Tensor, "batch tokens width"]:
        query = self.query + self.query_bias
        mixed = F.scaled_dot_product_attention(query, self.key, self.value, scale=1.0)
        return self._finish(self.tokens, mixed)

    def __call__(self, distinct: Distinct) -> Float[Tensor, "batch masks distinct width"]:
        index, weight = distinct.index, distinct.weight
        pairs = self.pairs.index_select(2, distinct.pairs).unflatten(2, (*index.shape, -1))
        of_key = self.from_bias[:, :, index] * weight + distinct.log_counts
        of_pair = weight[..., None] * weight[:, None]
        scores = torch.addcmul(of_key[:, :, :, None], pairs, of_pair)
        share = (scores.softmax(-1) * weight[:, None]).to(self.value)
        return self._finish(self.weighted(distinct), self._mixed(share, distinct).transpose(1, 2))

    def _mixed(
        self, share: Float[Tensor, "batch heads masks distinct distinct"], distinct: Distinct
    ) -> Float[Tensor, "batch heads masks distinct head_width"]:
        """Values, mixed by attention: of the distinct tokens, or of all with zeros for most."""
        if self.tokens.device.type not in DENSE:
            of_masks = self.value.index_select(2, distinct.index.flatten())
            return share @ of_masks.unflatten(2, distinct.index.shape)
        dense = distinct.over_tokens(share.transpose(2, 3), self.padded_value.shape[2])
        mixed = dense.flatten(2, 3) @ self.padded_value
        return mixed.unflatten(2, dense.shape[2:4]).transpose(2, 3)

    def _finish(
        self,
        residual: Float[Tensor, "*batch tokens width"],
        mixed: Float[Tensor, "*batch heads tokens head_width"],
    ) -> Float[Tensor, "*batch tokens width"]:
        return finish(self.block, residual, self.attention.out(mixed))
