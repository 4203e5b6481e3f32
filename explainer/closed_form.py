"""Masks at the last block of a model whose head reads prefix tokens alone.

Only the tokens that are read out need a query, and keys and values are linear in the mask, so one
projection serves all masks and N rows instead of N sequences go through the rest of the block. Both
residual conventions agree, because a prefix token is never masked. With q the query of a read-out
token, g a mask, y what attention reads, R_i a rotary and B a relative position term:

    s_i = q.R_i(g_i W_k y_i + b_k) + B_i,   a = softmax(s),   o = sum_i a_i g_i W_v y_i + b_v

Shapes: B images, n masks of a chunk, H heads of width d, R read-out tokens, T tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from explainer.attention import LinearAttention, as_multiplied, padded, probes_of
from explainer.collapse import Distinct, distinct_chunks
from explainer.head import head
from explainer.masks import Levels, Masks
from explainer.models import VitClassifier
from explainer.passes import WHOLE_BATCH, MaskLogits, Passes, at_once, evenly
from explainer.structure import Entering, Position, TimmModule, finish, position_term


def closed_form(model: VitClassifier, entering: Entering, groups: Sequence[Masks]) -> Passes:
    """Logits under masks at the last block, which `entering` enters; its attention is linear."""
    (position,) = entering.positions
    last = _LastBlock(model, entering.tokens, position, groups[0].levels)
    # Masks of all groups together: their rows are alike from here on, and many rows are fast. The
    # unmasked row goes with the first ones.
    size = _masks_at_once(model, last)
    first, *later = distinct_chunks(tuple(groups), model.prefix, model.patches, size)
    shares = torch.cat([last.unmasked(), last.masked(first)], dim=3)
    unmasked, masked = last.logits(shares).split([1, len(first.centres)], dim=1)
    begun = MaskLogits(WHOLE_BATCH, first.centres, masked)
    return Passes(unmasked[:, 0], chain([begun], _chunks(last, later)))


def _chunks(last: "_LastBlock", chunks: Sequence[Distinct]) -> Iterator[MaskLogits]:
    for distinct in chunks:
        yield MaskLogits(WHOLE_BATCH, distinct.centres, last.logits(last.masked(distinct)))


def _masks_at_once(model: VitClassifier, last: "_LastBlock") -> int:
    """As few equal chunks of masks as fit."""
    tokens = last.tokens
    shares = tokens[:, :, 0].nbytes * len(last.attention.query.bias) * model.readout
    rows = 4 * tokens[:, : model.readout].nbytes
    logits = len(tokens) * model.classes * tokens.element_size()
    return evenly(model.patches, at_once(max(shares, rows, logits), tokens))


class _LastBlock:
    """The last block, its projections done once: of queries, of values, and scores of all tokens.

    Without a position term the scores are linear in the mask, and tokens that are fully masked all
    have the same score, so a softmax needs one term for all of them together. With one, or with
    normalised keys, scores are computed once for each weight that masks have.
    """

    def __init__(
        self,
        model: VitClassifier,
        tokens: Float[Tensor, "batch tokens width"],
        position: Position,
        levels: Levels,
    ) -> None:
        self.model, self.tokens, self.position, self.levels = model, tokens, position, levels
        self.block = model.vit.blocks[-1]
        attention = LinearAttention.of(self.block)
        if attention is None:
            raise ValueError("the closed form needs an attention that is linear in what it reads")
        self.attention = attention
        y = as_multiplied(self.block.norm1(tokens))
        self.value = padded(attention.value.linear(y))
        query = attention.query(y[:, : model.readout])
        if attention.normed:
            query = attention.attn.q_norm(query)
        query = query * attention.attn.scale
        self.alike = not attention.normed and position_term(model.vit) is None
        if self.alike:
            probes = probes_of(query, attention.key)
            self.scores = (probes.flatten(1, 2) @ y.transpose(1, 2)).unflatten(1, query.shape[1:3])
        else:
            self.scores = self._scores_by_level(query, y)

    def _scores_by_level(
        self, query: Float[Tensor, "batch heads readout head_width"], y: Tensor
    ) -> Float[Tensor, "batch heads readout levels tokens"]:
        linear, bias = self.attention.key.linear(y), self.attention.key.bias[:, None]
        relative = _relative_bias(self.block.attn, self.position)
        scores = []
        for weight in self.levels:
            key = linear * weight + bias
            if self.attention.normed:
                key = self.block.attn.k_norm(key)
            key = self.attention.placed(key, self.position)
            score = query @ key.transpose(-2, -1)
            scores.append(score if relative is None else score + relative[..., : query.shape[2], :])
        return torch.stack(scores, dim=-2)

    def unmasked(self) -> Float[Tensor, "batch heads readout 1 value_tokens"]:
        """Attention of the read-out tokens in the unmasked image, for as many as `value` has."""
        scores = self.scores if self.alike else self.scores[..., -1, :]
        return self._over_values(scores.softmax(-1)[:, :, :, None])

    def masked(self, distinct: Distinct) -> Float[Tensor, "batch heads readout masks value_tokens"]:
        """Attention times mask, for each mask, over as many tokens as `value` has."""
        if not self.alike:
            weight, level = (
                distinct.over_tokens(each, self.tokens.shape[1])
                for each in (distinct.weight, distinct.level)
            )
            shape = (*self.scores.shape[:3], *level.shape)
            share = self.scores.gather(3, level.expand(shape)).softmax(-1) * weight
            return self._over_values(share)
        scores = self.scores.index_select(-1, distinct.index.flatten())
        scores = scores.unflatten(-1, distinct.index.shape)
        scores = torch.addcmul(distinct.log_counts, scores, distinct.weight)
        share = as_multiplied(scores.softmax(-1) * distinct.weight)
        return distinct.over_tokens(share, self.value.shape[2])

    def _over_values(
        self, share: Float[Tensor, "batch heads readout masks tokens"]
    ) -> Float[Tensor, "batch heads readout masks value_tokens"]:
        return as_multiplied(F.pad(share, (0, self.value.shape[2] - share.shape[-1])))

    def logits(
        self, share: Float[Tensor, "batch heads readout masks value_tokens"]
    ) -> Float[Tensor, "batch masks classes"]:
        """The rest of the block for the read-out tokens, and the head."""
        mixed = share.flatten(2, 3) @ self.value
        mixed = mixed.unflatten(2, share.shape[2:4]).permute(0, 3, 1, 2, 4)
        residual = self.tokens[:, None, : self.model.readout]
        rows = finish(self.block, residual, self.attention.out(mixed))
        none = rows.new_zeros(self.model.readout)
        return head(self.model.vit, rows.flatten(0, 1), none).unflatten(0, rows.shape[:2])


def _relative_bias(attn: TimmModule, position: Position) -> Tensor | None:
    """What timm's relative position attentions add to the scores."""
    shared = position.get("shared_rel_pos")
    if getattr(attn, "rel_pos", None) is not None:
        return attn.rel_pos.get_bias()
    if getattr(attn, "relative_position_bias_table", None) is None:
        return shared if shared is not None else position.get("shared_rel_pos_bias")
    own, shared = attn._get_rel_pos_bias(), position.get("shared_rel_pos_bias")
    return own if shared is None else own + shared
