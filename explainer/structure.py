"""What is alike and what differs in timm's plain vision transformers: tokens, blocks and heads."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from timm.layers import AttentionPoolLatent
from timm.models import VisionTransformer, VisionTransformerDistilled
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from timm.models.vision_transformer_relpos import (
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import Tensor, nn

# A module of timm: nn.Module's own types hide the attributes that every use of one is about.
TimmModule: TypeAlias = Any

PRE_NORM = (Block, EvaBlock, RelPosBlock, BeitBlock)
POST_NORM = (ResPostBlock, EvaBlockPostNorm, ResPostRelPosBlock)
PARALLEL = (ParallelScalingBlock, DiffParallelScalingBlock)  # attention and MLP read one norm
BLOCKS = (*PRE_NORM, *POST_NORM, *PARALLEL, ParallelThingsBlock)

Position = Mapping[str, Tensor | None]
Pooling = Literal["token", "avg", "map", "max", "avgmax", "prr", ""]


@dataclass(frozen=True)
class Entering:
    """Tokens that enter a block, and the position arguments of it and of every later block."""

    tokens: Float[Tensor, "batch tokens width"]
    positions: Sequence[Position]


def tokens_entering(
    vit: TimmModule, images: Float[Tensor, "batch 3 height width"], block: int
) -> Entering:
    """Run timm's own embedding and the blocks before `block`, counted from 0."""
    tokens, positions = EMBEDDINGS[type(vit)](vit, images)
    # Under autocast the residual stream stays in full precision; without a class token it starts
    # laid out channel by channel, which slows down every block.
    tokens = tokens.to(images.dtype).contiguous()
    for earlier, position in zip(vit.blocks[:block], positions, strict=False):
        tokens = earlier(tokens, **position)
    return Entering(tokens, positions[block:])


def _embed_absolute(vit: TimmModule, images: Tensor) -> tuple[Tensor, Sequence[Position]]:
    tokens = vit._pos_embed(vit.patch_embed(images))
    return vit.norm_pre(vit.patch_drop(tokens)), [{}] * len(vit.blocks)


def _embed_eva(vit: TimmModule, images: Tensor) -> tuple[Tensor, Sequence[Position]]:
    tokens, rope = vit._pos_embed(vit.patch_embed(images))
    rotary = _rotary(rope, len(vit.blocks), each_block=getattr(vit, "rope_mixed", False))
    return vit.norm_pre(tokens), rotary


def _embed_naflex(vit: TimmModule, images: Tensor) -> tuple[Tensor, Sequence[Position]]:
    embedded = vit._forward_embeds(images, patch_coord=None, patch_valid=None, attn_mask=None)
    rope = embedded["rope_embeds"]
    return embedded["patches"], _rotary(rope, len(vit.blocks), each_block=vit.rope_is_mixed)


def _rotary(rope: Tensor | None, depth: int, *, each_block: bool) -> Sequence[Position]:
    if rope is None:
        return [{}] * depth
    return [{"rope": rope[i] if each_block else rope} for i in range(depth)]


def _embed_relpos(vit: TimmModule, images: Tensor) -> tuple[Tensor, Sequence[Position]]:
    tokens = _after_class_token(vit, vit.patch_embed(images))
    shared = None if vit.shared_rel_pos is None else vit.shared_rel_pos.get_bias()
    return tokens, [{"shared_rel_pos": shared}] * len(vit.blocks)


def _embed_beit(vit: TimmModule, images: Tensor) -> tuple[Tensor, Sequence[Position]]:
    tokens = _after_class_token(vit, vit.patch_embed(images))
    tokens = tokens if vit.pos_embed is None else tokens + vit.pos_embed
    shared = None if vit.rel_pos_bias is None else vit.rel_pos_bias()
    return tokens, [{"shared_rel_pos_bias": shared}] * len(vit.blocks)


def _after_class_token(vit: TimmModule, patches: Tensor) -> Tensor:
    if vit.cls_token is None:
        return patches
    return torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1)


EMBEDDINGS: Mapping[type, Callable[[TimmModule, Tensor], tuple[Tensor, Sequence[Position]]]] = {
    VisionTransformer: _embed_absolute,
    VisionTransformerDistilled: _embed_absolute,
    VisionTransformerRelPos: _embed_relpos,
    Beit: _embed_beit,
    Eva: _embed_eva,
    NaFlexVit: _embed_naflex,
}


def position_term(vit: TimmModule) -> Literal["rotary", "relative"] | None:
    """The position term inside attention: where there is one, masked tokens are not alike."""
    if isinstance(vit, VisionTransformerRelPos | Beit):
        return "relative"
    return None if getattr(vit, "rope", None) is None else "rotary"


def pooling(vit: TimmModule) -> Pooling:
    """How the head reads the last block's tokens: the class token, a mean, by attention, or not."""
    if isinstance(getattr(vit, "attn_pool", None), AttentionPoolLatent):
        return "map"
    return "token" if isinstance(vit, VisionTransformerDistilled) else vit.global_pool


def first_pooled(vit: TimmModule) -> int:
    """The first token that average or attention pooling reads."""
    all_read = isinstance(vit, Eva) and vit.attn_pool is not None
    return 0 if all_read or getattr(vit, "pool_include_prefix", False) else vit.num_prefix_tokens


def is_plain_latent_pool(vit: TimmModule) -> bool:
    """Whether attention pooling adds no positions and normalises no keys."""
    pool = vit.attn_pool
    return pool.pos_embed is None and isinstance(pool.k_norm, nn.Identity)


def attention_inputs(
    block: TimmModule, tokens: Float[Tensor, "batch tokens width"]
) -> list[Float[Tensor, "batch tokens width"]]:
    """What each of the block's attentions reads of `tokens`: the y that masks are multiplied to."""
    if isinstance(block, ParallelThingsBlock):
        return [branch.norm(tokens) for branch in block.attns]
    if isinstance(block, PARALLEL):
        return [block.in_norm(tokens)]
    return [tokens if isinstance(block, POST_NORM) else block.norm1(tokens)]


def reading(block: TimmModule, inputs: Sequence[Tensor]) -> TimmModule:
    """A copy of `block` whose attentions read `inputs`, whatever enters it.

    The copy shares all weights, and `block` itself is left as it is.
    """
    if isinstance(block, ParallelThingsBlock):
        branches = zip(block.attns, inputs, strict=True)
        return with_children(
            block, attns=[with_children(each, norm=_Gives(given)) for each, given in branches]
        )
    (given,) = inputs
    if isinstance(block, PARALLEL):
        return with_children(block, in_norm=_Gives(given))
    if isinstance(block, POST_NORM):
        return with_children(block, attn=_Reads(block.attn, given))
    return with_children(block, norm1=_Gives(given))


class _Gives(nn.Module):
    """In place of a norm: gives `value`, whatever it is given."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _tokens: Tensor) -> Tensor:
        return self.value


class _Reads(nn.Module):
    """In place of an attention: that attention over `value`, whatever it is given."""

    def __init__(self, attn: TimmModule, value: Tensor) -> None:
        super().__init__()
        self.attn, self.value = attn, value

    def forward(self, _tokens: Tensor, **arguments: object) -> Tensor:
        return self.attn(self.value, **arguments)


def with_children(module: TimmModule, **children: object) -> TimmModule:
    """A shallow copy of a module with other children in place of its own."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **children}
    return copied


def in_dtype(module: TimmModule, dtype: torch.dtype) -> TimmModule:
    """A copy of `module` with its weights in `dtype`; the module itself is left as it is."""
    if not (module._modules or module._parameters or module._buffers):
        return module
    copied = copy.copy(module)
    vars(copied).update(  # past nn.Module's own attributes, which take as long as the conversion
        _modules={
            name: child and in_dtype(child, dtype) for name, child in module._modules.items()
        },
        _parameters=_in_dtype(module._parameters, dtype),
        _buffers=_in_dtype(module._buffers, dtype),
    )
    return copied


def _in_dtype(tensors: Mapping[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor | None]:
    return {
        name: tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def finish(
    block: TimmModule,
    residual: Float[Tensor, "*#batch tokens width"],
    attended: Float[Tensor, "*#batch tokens width"],
) -> Float[Tensor, "*#batch tokens width"]:
    """The rest of a `PRE_NORM` block, from attention's output on."""
    tokens = residual + _scaled(block, "1", attended)
    return tokens + _scaled(block, "2", block.mlp(block.norm2(tokens)))


def _scaled(block: TimmModule, which: str, branch: Tensor) -> Tensor:
    """LayerScale under either of the two names that timm has for it."""
    if hasattr(block, f"ls{which}"):
        return getattr(block, f"ls{which}")(branch)
    gamma = getattr(block, f"gamma_{which}")
    return branch if gamma is None else gamma * branch
