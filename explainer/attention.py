"""Attention that is linear in what it reads, taken apart so that all masks share its work.

Shapes: M sequences of S tokens of width D; R tokens that are read out; H heads of width d.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from explainer.structure import PRE_NORM, Position, TimmModule, finish

# Devices that are faster at one large product, even if most of it is not needed, than at many small
# ones, and how many numbers of 16 bits they load at a time.
DENSE, ALIGNED = frozenset({"cuda"}), 8
LINEAR = (Attention, AttentionRope, EvaAttention, RelPosAttention, BeitAttention)


@dataclass(frozen=True)
class Projection:
    """Query, key or value of an attention: a linear map, its result split into heads."""

    weight: Float[Tensor, "heads head_width width"]
    bias: Float[Tensor, "heads head_width"]

    def linear(
        self, y: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch heads tokens head_width"]:
        """Without the bias: linear in `y`, so also in a mask's weight."""
        projected = F.linear(y, self.weight.flatten(0, 1))
        return projected.unflatten(-1, self.bias.shape).transpose(1, 2)

    def __call__(
        self, y: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch heads tokens head_width"]:
        projected = F.linear(y, self.weight.flatten(0, 1), self.bias.flatten())
        return projected.unflatten(-1, self.bias.shape).transpose(1, 2)


@dataclass(frozen=True)
class LinearAttention:
    """An attention of a pre-norm block, ungated, whose values are linear in what it reads.

    Its keys and queries are too, unless `normed`: then they are normalised after projection.
    """

    attn: TimmModule

    @classmethod
    def of(cls, block: TimmModule) -> "LinearAttention | None":
        """The attention of a timm block, or None where it is of another kind."""
        if type(block) not in PRE_NORM or type(block.attn) not in LINEAR:
            return None
        return None if getattr(block.attn, "gate", None) is not None else cls(block.attn)

    @property
    def query(self) -> Projection:
        return self._projections[0]

    @property
    def key(self) -> Projection:
        return self._projections[1]

    @property
    def value(self) -> Projection:
        return self._projections[2]

    @cached_property
    def _projections(self) -> list[Projection]:
        return [Projection(*parts) for parts in _projections(self.attn, self.attn.num_heads)]

    @property
    def normed(self) -> bool:
        return not isinstance(getattr(self.attn, "k_norm", nn.Identity()), nn.Identity)

    @property
    def unbiased(self) -> bool:
        """Whether a token of zeros has a query and a key of zeros, wherever it stands."""
        attn = self.attn
        if attn.qkv is not None:
            return attn.qkv.bias is None and getattr(attn, "q_bias", None) is None
        return attn.q_proj.bias is None and attn.k_proj.bias is None

    def placed(
        self, projected: Float[Tensor, "batch heads tokens head_width"], position: Position
    ) -> Float[Tensor, "batch heads tokens head_width"]:
        """Queries or keys of all tokens, turned by their rotary positions where there are any."""
        rope = position.get("rope")
        if rope is None:
            return projected
        prefix = self.attn.num_prefix_tokens
        turned = apply_rot_embed_cat(projected[:, :, prefix:], rope, half=self.attn.rotate_half)
        return torch.cat([projected[:, :, :prefix], turned.to(projected)], dim=2)

    def out(
        self, mixed: Float[Tensor, "*batch heads tokens head_width"]
    ) -> Float[Tensor, "*batch tokens width"]:
        """From the mixed values of all heads, made without the bias of values, to the output."""
        joined = mixed.transpose(-3, -2).flatten(-2)
        norm, proj = getattr(self.attn, "norm", None), self.attn.proj
        if norm is None or isinstance(norm, nn.Identity):
            return F.linear(joined, proj.weight, self._projected_bias)
        return proj(norm(joined + self.value.bias.flatten()))

    @cached_property
    def _projected_bias(self) -> Float[Tensor, " width"]:
        """What the projection makes of the bias of values, once instead of in each row."""
        weight, bias = self.attn.proj.weight, self.attn.proj.bias
        with torch.autocast(weight.device.type, enabled=False):
            through = weight @ self.value.bias.flatten()
        return through if bias is None else through + bias


def _projections(attn: TimmModule, heads: int) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of query, key and value, however timm stores them; zeros for no bias."""
    if attn.qkv is not None:
        weights = attn.qkv.weight.unflatten(0, (3, heads, -1)).unbind()
        separate = getattr(attn, "q_bias", None)
        fused = attn.qkv.bias
        if separate is not None:
            fused = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        if fused is None:
            fused = attn.qkv.weight.new_zeros(len(attn.qkv.weight))
        return list(zip(weights, fused.unflatten(0, (3, heads, -1)), strict=True))
    parts = []
    for layer in (attn.q_proj, attn.k_proj, attn.v_proj):
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        weight = layer.weight.unflatten(0, (-1, attn.head_dim))
        shared = heads // len(weight)  # grouped queries: several heads share a key and a value
        bias = bias.view(-1, attn.head_dim)
        parts.append((weight.repeat_interleave(shared, 0), bias.repeat_interleave(shared, 0)))
    return parts


def read_out(
    block: TimmModule,
    attention: LinearAttention,
    tokens: Float[Tensor, "sequences tokens width"],
    count: int,
    log_counts: Float[Tensor, " tokens"],
) -> Float[Tensor, "sequences count width"]:
    """The first `count` tokens after a block whose other tokens nobody reads.

    Keys and values need not be made: q.W_k y = (W_k^T q).y, sum_i a_i W_v y_i = W_v sum_i a_i y_i,
    so a sequence costs two projections of what is read out instead of two of each of its tokens.
    The key's bias adds the same to all scores of a query and cancels. `log_counts` are the
    logarithms of how many equal tokens each token stands for.
    """
    y = block.norm1(tokens)
    query = attention.query(y[:, :count].contiguous()) * attention.attn.scale
    mixed = _attend_by_projection(query, attention.key, attention.value, y, log_counts)
    return finish(block, tokens[:, :count], attention.out(mixed))


def latent_pool(
    pool: TimmModule,
    tokens: Float[Tensor, "sequences tokens width"],
    log_counts: Float[Tensor, " tokens"],
) -> Float[Tensor, "sequences features"]:
    """timm's attention pooling over tokens that each stand for several equal ones."""
    heads = (pool.num_heads, pool.head_dim)
    weight = pool.kv.weight.unflatten(0, (2, *heads))
    bias = pool.kv.bias
    bias = weight.new_zeros(2, *heads) if bias is None else bias.unflatten(0, (2, *heads))
    key, value = Projection(weight[0], bias[0]), Projection(weight[1], bias[1])
    query = pool.q(pool.latent).unflatten(-1, heads).transpose(1, 2)
    query = (pool.q_norm(query) * pool.scale).expand(len(tokens), -1, -1, -1)
    mixed = _attend_by_projection(query, key, value, tokens, log_counts)
    mixed = mixed + value.bias[:, None]
    pooled = pool.proj(mixed.transpose(1, 2).flatten(2)).to(tokens)  # a residual, not a product
    if pool.mlp is not None:
        pooled = pooled + pool.mlp(pool.norm(pooled))
    return pooled.mean(1) if pool.pool == "avg" else pooled[:, 0]


def short_sequences() -> AbstractContextManager[None]:
    """All of torch's kernels but cuDNN's, which is slow at many sequences of a few tokens."""
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    return sdpa_kernel(list(kernels))


def as_multiplied(tensor: Tensor) -> Tensor:
    """What autocast would make of a factor of each product, for one that is in several."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def aligned(length: int) -> int:
    """The next length that a GPU reads by whole vectors."""
    return length + -length % ALIGNED


def padded(
    projected: Float[Tensor, "batch heads tokens head_width"],
) -> Float[Tensor, "batch heads padded head_width"]:
    """Keys or values, with zeros behind them that make their number `aligned`."""
    tokens = projected.shape[2]
    return F.pad(projected, (0, 0, 0, aligned(tokens) - tokens))


def probes_of(
    query: Float[Tensor, "sequences heads count head_width"], key: Projection
) -> Float[Tensor, "sequences heads count width"]:
    """Queries carried into the width of what attention reads: their keys are never made."""
    by_head = query.permute(1, 0, 2, 3).flatten(1, 2)
    probes = (by_head @ key.weight).unflatten(1, (len(query), -1))
    return probes.permute(1, 0, 2, 3)


def _attend_by_projection(
    query: Float[Tensor, "sequences heads count head_width"],
    key: Projection,
    value: Projection,
    y: Float[Tensor, "sequences tokens width"],
    log_counts: Float[Tensor, " tokens"],
) -> Float[Tensor, "sequences heads count head_width"]:
    """Attention whose queries are carried into the width of `y`, and its means back out of it.

    Where large products are cheap, all values are made instead of the means, whose products are
    small. The bias of values is left to whoever needs it.
    """
    sequences, heads, count, _ = query.shape
    y = as_multiplied(y)
    probes = probes_of(query, key).flatten(1, 2)
    share = (probes @ y.transpose(1, 2) + log_counts).softmax(-1).to(y)
    if y.device.type in DENSE:
        shares = share.unflatten(1, (heads, count))[..., None]
        return (value.linear(y)[:, :, None] * shares).sum(-2)
    means = (share @ y).unflatten(1, (heads, count)).permute(1, 0, 2, 3).flatten(1, 2)
    mixed = means @ value.weight.transpose(1, 2)
    return mixed.unflatten(1, (sequences, count)).transpose(0, 1)
