"""A forward pass that keeps what gradients are taken of, without touching the model.

Blocks are run as shallow copies that share all weights (structure.with_children): their attentions
are computed openly, softmax and all, and what they make passes through a module of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from timm.layers import GELU, GELUTanh, GluMlp, QuickGELU, RmsNorm, SwiGLU
from torch import Tensor, nn

from explainer.models import VitClassifier
from explainer.structure import TimmModule, pooling, tokens_entering, with_children

GATES = (nn.GELU, nn.SiLU, GELU, GELUTanh, QuickGELU)
AFFINE = (nn.ReLU, nn.Identity)


@dataclass(frozen=True)
class Trace:
    """What a forward pass of a batch left behind, block by block.

    `inputs`: the tokens entering each block. `attentions`: of each block, after its softmax.
    """

    logits: Float[Tensor, "batch classes"]
    inputs: Sequence[Float[Tensor, "batch tokens width"]]
    attentions: Sequence[Float[Tensor, "batch heads tokens tokens"]]


def trace(
    model: VitClassifier,
    crops: UInt8[Tensor, "batch 3 height width"],
    *,
    balanced: bool = False,
) -> Trace:
    """Run the model on crops; where gradients are on, they reach back to the first block's tokens.

    `balanced`: backwards, every product of two functions of the tokens counts once
    (see `balanced_module`), so that gradient times tokens shares out the whole logit.
    """
    with torch.no_grad():
        entering = tokens_entering(model.vit, model.normalise(crops), 0)
    tokens, vit = entering.tokens, model.vit
    tokens.requires_grad_(torch.is_grad_enabled())
    inputs: list[Tensor] = []
    kept: list[Tensor] = []
    reader = Constant() if balanced else Keeps(kept)
    for block, position in zip(vit.blocks, entering.positions, strict=True):
        inputs.append(tokens)
        tokens = read_by(balanced_module(block) if balanced else block, reader)(tokens, **position)
    if balanced:
        vit = with_children(vit, **{name: balanced_module(child) for name, child in _norms(vit)})
    return Trace(vit.forward_head(vit.norm(tokens)), inputs, kept)


def read_by(module: TimmModule, reader: nn.Module) -> TimmModule:
    """A copy of a block in which what each attention's softmax makes passes through `reader`."""
    children = {name: read_by(child, reader) for name, child in module.named_children()}
    copied = with_children(module, **children)
    if "attn_drop" in module._modules:
        copied._modules["attn_drop"] = reader
        copied.fused_attn = False
    return copied


class Keeps(nn.Module):
    """In place of the dropout after a softmax: keeps the attention."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, attention: Tensor) -> Tensor:
        self.kept.append(attention)
        return attention


class Constant(nn.Module):
    """In place of the dropout after a softmax: attention that gradients do not enter."""

    def forward(self, attention: Tensor) -> Tensor:
        return attention.detach()


def balanced_module(module: TimmModule) -> TimmModule:
    """A copy of a module with the same outputs, and LibraGrad's gradients (arXiv 2411.16760, 3.5).

    Of a norm the denominator, and of a gated activation the gate, are constants; a product of two
    branches (SwiGLU) gives each half. Attention, the third rule, is the reader's part
    (`read_by`). Raises ValueError where a norm or an activation has no rule.
    """
    if isinstance(module, nn.LayerNorm | RmsNorm):
        return _BalancedNorm(module)
    if isinstance(module, GATES):
        return _BalancedGate(module)
    kind = type(module).__name__
    if not module._modules and "norm" in kind.lower():
        raise ValueError(f"LibraGrad has no rule for the norm {kind}")
    children = {name: balanced_module(child) for name, child in module.named_children()}
    if isinstance(module, GluMlp | SwiGLU):
        branches = [name for name in children if name.startswith("fc1")]
        children |= {name: nn.Sequential(children[name], _Halved()) for name in branches}
    act = getattr(module, "act", getattr(module, "mlp_act", None))
    if act is not None and not isinstance(act, (*GATES, *AFFINE)):
        raise ValueError(f"LibraGrad has no rule for the activation {type(act).__name__}")
    return with_children(module, **children)


def _norms(vit: TimmModule) -> list[tuple[str, TimmModule]]:
    return [(name, vit._modules[name]) for name in ("norm", "fc_norm") if name in vit._modules]


class _BalancedNorm(nn.Module):
    """A layer norm, or one by the root mean square, that divides by a constant."""

    def __init__(self, norm: TimmModule) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        norm = self.norm
        is_centred = isinstance(norm, nn.LayerNorm)
        centred = tokens - tokens.mean(-1, keepdim=True) if is_centred else tokens
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
        normed = centred * scale.detach()
        normed = normed if norm.weight is None else normed * norm.weight
        bias = getattr(norm, "bias", None)
        return normed if bias is None else normed + bias


class _BalancedGate(nn.Module):
    """An activation x * gate(x) whose gate is a constant."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.activation(x) / x.masked_fill(x == 0, 1.0)
        return x * gate


class _Halved(nn.Module):
    """Gives what it is given, and half of the gradient back."""

    def forward(self, x: Tensor) -> Tensor:
        half = x / 2
        return half + half.detach()


def refuse_unbalanced(model: VitClassifier) -> None:
    """Raise ValueError where LibraGrad's rules do not cover a model.

    They have none for gated attention, and pooling by attention is computed apart from the blocks.
    """
    vit = model.vit
    if pooling(vit) not in ("token", "avg"):
        raise ValueError(
            f"its head pools by {pooling(vit) or 'nothing'}, for which there is no rule"
        )
    for module in vit.blocks.modules():
        if getattr(module, "gate", None) is not None:
            raise ValueError("its attention is gated, for which LibraGrad has no rule")
    for module in (*vit.blocks, *dict(_norms(vit)).values()):
        balanced_module(module)
