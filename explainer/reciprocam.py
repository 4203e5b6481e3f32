"""ViT-ReciproCAM in about the price of a forward pass, equal to its definition (`reference.py`).

For every patch n the tokens that enter attention at block k are multiplied by a mask around n, the
rest of the network runs, and the target's score is n's saliency (arXiv 2310.02588, Fig. 1). Two
exact shortcuts replace the N passes:

- At the last block (`closed_form`), only the tokens that the head reads need a query, and keys and
  values are linear in the mask, so one projection serves all masks.
- At earlier blocks with the masked residual (`collapsed`), all fully masked tokens of a sequence
  are identical and stay identical, so each masked sequence holds prefix + window + 1 distinct
  tokens; the last stands for the others by the logarithm of their number, added to the attention
  scores.

Shapes: B images, N patches, T = P + N tokens with P prefix tokens, H heads of width d, D = H d,
R readout tokens, n masks of a chunk, S = P + window + 1 distinct tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from explainer.maps import normalise
from explainer.models import VitClassifier
from explainer.scores import Target, class_scores, select_targets

KERNELS = {
    "1x1": [[1.0]],
    "3x3": [[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1 / 4, 1 / 8], [1 / 16, 1 / 8, 1 / 16]],
}
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}  # of a chunk of masks' largest intermediate


@dataclass(frozen=True)
class ReciproCam:
    """How a saliency map is made; the defaults are what docs/reciprocam.md recommends.

    `block`: the transformer block whose attention input is masked, counted from the end (-1, -2).
    `residual`: what attention's output is added to: x itself (`kept`, the paper) or the masked x.
    `mask`: the window that stays: the 3x3 kernel around the patch, or the single token.
    `score`: the target's log-odds under the softmax, which rank like its probability, or its logit.
    """

    block: int = -2
    residual: Literal["masked", "kept"] = "masked"
    mask: Literal["3x3", "1x1"] = "3x3"
    score: Literal["log_odds", "logit"] = "log_odds"

    def check(self, model: VitClassifier) -> None:
        """Raise ValueError, with the reason, where `model` has no fast exact form of this."""
        depth = len(model.vit.blocks)
        if not -depth <= self.block <= -1:
            raise ValueError(f"block counts from the end, -{depth} to -1 here; got {self.block}")
        if self.block < -1 and self.residual == "kept":
            raise ValueError(
                f"the kept residual at block {self.block} has no fast exact form: every patch "
                "costs a pass of its own; use residual masked, or block -1, where both agree"
            )
        window = len(KERNELS[self.mask]) ** 2
        if self.block < -1 and model.patches < window:
            raise ValueError(
                f"{self.mask} masks at block {self.block} need a grid of at least {window} "
                f"patches; got {model.grid[0]} x {model.grid[1]}; use block -1 or mask 1x1"
            )
        if self.score == "log_odds" and model.classes < 2:
            raise ValueError(
                "log-odds compare a class with the others, and this model has one; use score logit"
            )


@dataclass(frozen=True)
class Explanation:
    """Explanations of a batch.

    `logits`: of the unmasked images, all classes. `targets`: the explained classes.
    `scores`: each target's score for each patch's mask, on the token grid.
    """

    logits: Float[Tensor, "batch classes"]
    targets: Int[Tensor, "batch targets"]
    scores: Float[Tensor, "batch targets rows columns"]

    @property
    def saliency(self) -> Float[Tensor, "batch targets rows columns"]:
        """The maps in [0, 1]; a constant map is all zeros."""
        return normalise(self.scores)


@torch.inference_mode()
def explain(
    model: VitClassifier,
    crops: UInt8[Tensor, "batch 3 height width"],
    *,
    target: Target | str = "predicted",
    labels: Int[Tensor, " batch"] | None = None,
    method: ReciproCam | None = None,
) -> Explanation:
    """Explain a batch of crops: which patches carry the score of each target class.

    `labels` are class indices, needed for target `label` only. Raises ValueError where `method`
    has no exact fast form on `model`, or the target asks for what is not there. The model is not
    changed.
    """
    method = method or ReciproCam()
    method.check(model)
    target = Target.parse(target) if isinstance(target, str) else target
    tokens = _tokens_entering(model, crops, method.block)
    masks = neighbourhoods(model.grid, method.mask, crops.device)
    form = closed_form if method.block == -1 else collapsed
    readouts = form(model, tokens, masks, method.block)
    logits = _logits(model, next(readouts))[:, 0]
    targets = select_targets(logits, target, labels)
    scores = [class_scores(_logits(model, readout), targets, method.score) for readout in readouts]
    maps = torch.cat(scores, dim=1).transpose(1, 2).unflatten(-1, model.grid)
    return Explanation(logits, targets, maps.contiguous())


@dataclass(frozen=True)
class Neighbourhoods:
    """The patches that each mask keeps: `index` on the flattened grid and `weight`.

    Cells of a window that lie outside the grid have index 0 and weight 0.
    """

    index: Int[Tensor, "masks window"]
    weight: Float[Tensor, "masks window"]


def neighbourhoods(
    grid: tuple[int, int], mask: Literal["3x3", "1x1"], device: torch.device
) -> Neighbourhoods:
    """One mask a patch, in row-major order; windows are cropped at borders, not renormalised."""
    kernel = torch.tensor(KERNELS[mask], dtype=torch.float64, device=device)
    reach = len(kernel) // 2
    offsets = torch.arange(-reach, reach + 1, device=device)
    cells = torch.arange(grid[0] * grid[1], device=device)
    row = (cells // grid[1])[:, None, None] + offsets[:, None]
    column = (cells % grid[1])[:, None, None] + offsets
    inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1])
    index = torch.where(inside, row * grid[1] + column, 0)
    weight = torch.where(inside, kernel, 0.0)
    return Neighbourhoods(index.flatten(1), weight.flatten(1))


def _tokens_entering(
    model: VitClassifier, crops: UInt8[Tensor, "batch 3 h w"], block: int
) -> Float[Tensor, "batch tokens width"]:
    vit = model.vit
    tokens = vit.patch_embed(model.normalise(crops))
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(tokens)))
    for earlier in vit.blocks[:block]:
        tokens = earlier(tokens)
    return tokens


def _qkv_bias(attn: Attention) -> Float[Tensor, " three_widths"]:
    """The bias of query, key and value; zeros where the model was built without."""
    if attn.qkv.bias is None:
        return attn.qkv.weight.new_zeros(3 * attn.attn_dim)
    return attn.qkv.bias


def closed_form(
    model: VitClassifier,
    tokens: Float[Tensor, "batch tokens width"],
    masks: Neighbourhoods,
    _block: int,
) -> Iterator[Float[Tensor, "batch masks readout width"]]:
    """Readout tokens at the last block: of the unmasked image, then of every mask in chunks.

    With g the mask, the logit of token i is g_i q.W_k y_i + q.b_k, whose second term is the same
    for all tokens and cancels in the softmax; the output is sum_i a_i g_i W_v y_i + b_v. Only
    prefix tokens are read out, and those are never masked: both residual conventions agree.
    """
    block, readout = model.vit.blocks[-1], model.readout
    attn, width = block.attn, block.attn.attn_dim
    heads = (attn.num_heads, attn.head_dim)
    normed, weight, bias = block.norm1(tokens), attn.qkv.weight, _qkv_bias(attn)
    query = F.linear(normed[:, :readout], weight[:width], bias[:width])
    linear = F.linear(normed, weight[width:]).unflatten(-1, (2, *heads))
    key, value = linear.permute(2, 0, 3, 1, 4)
    query = query.unflatten(-1, heads).transpose(1, 2)
    scores = (query @ key.transpose(-2, -1) * attn.scale)[:, :, :, None]
    value_bias = bias[2 * width :].unflatten(0, heads)[:, None]
    residual = tokens[:, None, :readout]
    chunk = _chunk_length(max(scores.nbytes, 4 * residual.nbytes), scores)
    weights = _weights(masks, model.prefix, tokens)
    for g in (torch.ones_like(weights[:1]), *weights.split(chunk)):
        share = (scores * g).softmax(-1).mul_(g)
        mixed = share.flatten(2, 3) @ value + value_bias
        mixed = mixed.unflatten(2, (readout, len(g))).permute(0, 3, 2, 1, 4).flatten(-2)
        yield _finish(block, residual, attn.proj(attn.norm(mixed)))


def _weights(
    masks: Neighbourhoods, prefix: int, tokens: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "masks tokens"]:
    """What each mask multiplies each token by: 1 for prefix tokens, 0 for most patches."""
    weights = tokens.new_ones(len(masks.index), tokens.shape[1])
    weights[:, prefix:] = 0.0
    weights[:, prefix:].scatter_add_(1, masks.index, masks.weight.to(weights))
    return weights


def collapsed(
    model: VitClassifier,
    tokens: Float[Tensor, "batch tokens width"],
    masks: Neighbourhoods,
    block: int,
) -> Iterator[Float[Tensor, "batch masks readout width"]]:
    """Readout tokens at an earlier block with the masked residual: unmasked, then masks in chunks.

    A sequence is the prefix tokens, the window's tokens times their weights, and one token of
    weight 0 that stands for the N - window others: log(N - window) is added to its attention
    scores. Cells of a window outside the grid have weight 0, so they are such tokens themselves.
    Query, key and value without their bias are linear in the weight: one projection serves all.
    """
    masked, later = model.vit.blocks[block], block + 1
    attn = masked.attn
    heads = (3, attn.num_heads, attn.head_dim)
    linear = F.linear(masked.norm1(tokens), attn.qkv.weight).unflatten(-1, heads)
    qkv_bias = _qkv_bias(attn).unflatten(0, heads)
    query, key, value = (linear + qkv_bias).permute(2, 0, 3, 1, 4)
    plain = _finish(masked, tokens, _attend(attn, query, key, value))
    yield _remaining_blocks(model, plain, later)[:, None]

    rows = _sequences(masks, model.prefix)
    batch, distinct = len(tokens), rows.index.shape[1]
    others = model.patches - masks.index.shape[1]
    bias = tokens.new_zeros(distinct)
    bias[-1] = math.log(others) if others else -math.inf
    chunk = _chunk_length(4 * tokens[:, 0].nbytes * distinct, tokens)
    for index, weight in zip(rows.index.split(chunk), rows.weight.split(chunk), strict=True):
        g = weight.to(bias)[..., None]
        gathered = linear[:, index] * g[..., None, None] + qkv_bias
        query, key, value = gathered.flatten(0, 1).permute(2, 0, 3, 1, 4)
        sequences = (tokens[:, index] * g).flatten(0, 1)
        sequences = _finish(masked, sequences, _attend(attn, query, key, value, bias))
        readout = _remaining_blocks(model, sequences, later, bias)
        yield readout.unflatten(0, (batch, len(index)))


def _chunk_length(mask_bytes: int, like: Tensor) -> int:
    """How many masks go through the tail at once, each with an intermediate of `mask_bytes`."""
    return max(1, CHUNK_BYTES[like.device.type] // mask_bytes)


def _sequences(masks: Neighbourhoods, prefix: int) -> Neighbourhoods:
    """Prefix tokens, window, and one token of weight 0, as indices into all tokens."""
    count, device = len(masks.index), masks.index.device
    whole = torch.arange(prefix, device=device).expand(count, -1)
    none = torch.zeros(count, 1, dtype=torch.long, device=device)
    index = torch.cat([whole, masks.index + prefix, none], dim=1)
    weight = torch.cat([torch.ones_like(whole), masks.weight, none], dim=1)
    return Neighbourhoods(index, weight)


def _remaining_blocks(
    model: VitClassifier,
    tokens: Float[Tensor, "sequences tokens width"],
    first: int,
    bias: Float[Tensor, " tokens"] | None = None,
) -> Float[Tensor, "sequences readout width"]:
    """Run blocks `first` to the last on whole sequences; the last for its readout tokens alone."""
    *middle, last = model.vit.blocks[first:]
    for block in middle:
        tokens = block(tokens, attn_mask=None if bias is None else bias[None, None, None])
    attn, readout = last.attn, model.readout
    normed = last.norm1(tokens)
    weight, qkv_bias, width = attn.qkv.weight, _qkv_bias(attn), attn.attn_dim
    query = F.linear(normed[:, :readout], weight[:width], qkv_bias[:width])
    key_value = F.linear(normed, weight[width:], qkv_bias[width:])
    heads = (-1, attn.num_heads, attn.head_dim)
    query = query.unflatten(-1, heads[1:]).transpose(1, 2)
    key, value = key_value.unflatten(-1, (2, *heads[1:])).permute(2, 0, 3, 1, 4)
    return _finish(last, tokens[:, :readout], _attend(attn, query, key, value, bias))


def _attend(
    attn: Attention,
    query: Float[Tensor, "sequences heads queries head_width"],
    key: Float[Tensor, "sequences heads tokens head_width"],
    value: Float[Tensor, "sequences heads tokens head_width"],
    bias: Float[Tensor, " tokens"] | None = None,
) -> Float[Tensor, "sequences queries width"]:
    """timm's Attention from its projections on, with `bias` added to every query's scores."""
    mask = None if bias is None else bias[None, None, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
    return attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2)))


def _finish(
    block: Block,
    residual: Float[Tensor, "*#batch tokens width"],
    attended: Float[Tensor, "*#batch tokens width"],
) -> Float[Tensor, "*#batch tokens width"]:
    """The rest of a pre-norm block, from attention's output on."""
    tokens = residual + block.ls1(attended)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def _logits(
    model: VitClassifier, readout: Float[Tensor, "batch masks readout width"]
) -> Float[Tensor, "batch masks classes"]:
    features = model.vit.norm(readout.flatten(0, 1))
    return model.vit.forward_head(features).unflatten(0, readout.shape[:2])
