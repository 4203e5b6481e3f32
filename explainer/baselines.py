"""Other ways to explain a plain vision transformer, under one signature: what ours is held against.

Each takes a model, crops and a choice of targets by their logits, and gives an Explanation whose
scores are the method's own, not log-odds. None changes the model.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor

from explainer.attention import LINEAR
from explainer.gradients import Keeps, read_by, trace
from explainer.models import VitClassifier
from explainer.passes import at_once
from explainer.reciprocam import Explanation
from explainer.structure import attention_inputs, first_pooled, pooling, reading, tokens_entering

Crops: TypeAlias = UInt8[Tensor, "batch 3 height width"]
Choose: TypeAlias = Callable[[Float[Tensor, "batch classes"]], Int[Tensor, "batch targets"]]
Attribution: TypeAlias = Callable[[VitClassifier, Tensor, Choose], Explanation]
OfTarget: TypeAlias = Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch patches"]]

# Of attention: those whose softmax is the whole of what mixes tokens.
ONE_SOFTMAX = (*LINEAR, ParallelScalingBlock)
RISE_CELLS, RISE_KEPT = 7, 0.5


@torch.inference_mode()
def rollout(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """Attention rollout (Abnar and Zuidema, ACL 2020): half attention, half residual, multiplied.

    Heads are averaged. The map is the same for every class.
    """
    traced = trace(model, crops)
    relation = _identity(traced.attentions[0])
    for attention in traced.attentions:
        mixed = attention.mean(1) + _identity(attention)
        relation = mixed / mixed.sum(-1, keepdim=True) @ relation
    return _alike(model, traced.logits, choose, _read(model, relation))


@torch.inference_mode(False)
@torch.enable_grad()
def relevance(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """Generic attention explainability (Chefer, Gur and Wolf, ICCV 2021), equations 5 and 6.

    R starts as the identity; each block adds the positive part of attention times the gradient of
    the target's logit, averaged over heads, times R.
    """
    traced = trace(model, crops)

    def of_target(target: Tensor) -> Tensor:
        logit = _sum_of(traced.logits, target)
        gradients = torch.autograd.grad(logit, traced.attentions, retain_graph=True)
        relation = _identity(traced.attentions[0])
        for attention, gradient in zip(traced.attentions, gradients, strict=True):
            relation = relation + (gradient * attention).clamp(min=0).mean(1) @ relation
        return _read(model, relation)

    return _each(model, traced.logits, choose, of_target)


@torch.inference_mode(False)
@torch.enable_grad()
def gradcam(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of what the last block's attention reads.

    That is where pytorch-grad-cam's documentation puts it for vision transformers. Gradients of the
    target's logit, averaged over patches, weigh the channels; the sum's positive part is the map.
    """
    vit = model.vit
    with torch.no_grad():
        entering = tokens_entering(vit, model.normalise(crops), len(vit.blocks) - 1)
        read = attention_inputs(vit.blocks[-1], entering.tokens)
    # Where attention reads the residual itself, only what it reads is followed.
    inputs = [y.detach().requires_grad_() for y in read]
    last = reading(vit.blocks[-1], inputs)(entering.tokens, **entering.positions[0])
    logits = vit.forward_head(vit.norm(last))

    def of_target(target: Tensor) -> Tensor:
        gradients = torch.autograd.grad(_sum_of(logits, target), inputs, retain_graph=True)
        weights = [each[:, model.prefix :].mean(1, keepdim=True) for each in gradients]
        maps = [(y[:, model.prefix :] * w).sum(-1) for y, w in zip(inputs, weights, strict=True)]
        return torch.stack(maps).sum(0).clamp(min=0)

    return _each(model, logits, choose, of_target)


@torch.inference_mode(False)
@torch.enable_grad()
def legrad(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """LeGrad (Bousselham et al., ICCV 2025): how each block's attention forms the class.

    After each block the mean of all tokens goes through the model's own final norm and head; the
    positive part of the target's logit's gradient by the block's attention is averaged over heads
    and queries, and summed over all blocks (checked against WalBouss/LeGrad:legrad/wrapper.py,
    which takes the last two unless it is told otherwise).
    """
    vit = model.vit
    with torch.no_grad():
        entering = tokens_entering(vit, model.normalise(crops), 0)
    tokens, kept, of_blocks = entering.tokens, list[Tensor](), []
    for block, position in zip(vit.blocks, entering.positions, strict=True):
        entered = tokens.detach().requires_grad_()
        tokens = read_by(block, Keeps(kept))(entered, **position)
        pooled = tokens.mean(1, keepdim=True).expand(-1, model.prefix + 1, -1)
        of_blocks.append(vit.forward_head(vit.norm(pooled)))
    with torch.no_grad():
        logits = vit.forward_head(vit.norm(tokens))

    def of_target(target: Tensor) -> Tensor:
        both = zip(of_blocks, kept, strict=True)
        gradients = [
            torch.autograd.grad(_sum_of(of_block, target), attention, retain_graph=True)[0]
            for of_block, attention in both
        ]
        maps = [gradient.clamp(min=0).mean((1, 2)) for gradient in gradients]
        return torch.stack(maps).sum(0)[:, model.prefix :]

    return _each(model, logits, choose, of_target)


@torch.inference_mode(False)
@torch.enable_grad()
def libragrad(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """FullGrad+ with LibraGrad's gradients (Mehri et al., CVPR 2025, equation of FullGrad+).

    Tokens times the gradient of the target's logit, summed over the width and over the inputs of
    all blocks. Biases' own terms are left out, which costs little (their table 5).
    """
    traced = trace(model, crops, balanced=True)

    def of_target(target: Tensor) -> Tensor:
        logit = _sum_of(traced.logits, target)
        gradients = torch.autograd.grad(logit, traced.inputs, retain_graph=True)
        both = zip(traced.inputs, gradients, strict=True)
        shares = [(tokens * gradient).sum(-1) for tokens, gradient in both]
        return torch.stack(shares).sum(0)[:, model.prefix :]

    return _each(model, traced.logits, choose, of_target)


@torch.inference_mode()
def rise(model: VitClassifier, crops: Crops, choose: Choose, masks: int) -> Explanation:
    """RISE (Petsiuk, Das and Saenko, BMVC 2018): the probability's mean over random masks.

    Masks are 7x7 cells, kept with probability 0.5, enlarged bilinearly and shifted at random; what
    is masked becomes the model's mean colour. All images share them, and each run draws the same.
    A forward pass a mask.
    """
    images = model.normalise(crops)
    logits = model.vit(images)
    targets = choose(logits)
    total = images.new_zeros(*targets.shape, model.patches)
    for part in _rise_masks(images, masks):
        masked = (images[:, None] * part[:, None]).flatten(0, 1)
        probability = model.vit(masked).softmax(-1).unflatten(0, (len(images), -1))
        chosen = probability.gather(-1, targets[:, None].expand(-1, len(part), -1))
        on_grid = F.adaptive_avg_pool2d(part[:, None], model.grid).flatten(1)
        total += chosen.transpose(1, 2) @ on_grid
    return Explanation(logits, targets, (total / (masks * RISE_KEPT)).unflatten(-1, model.grid))


@torch.inference_mode()
def random(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """A floor: uniform noise, drawn by the image's own pixels, so that a map can be had again."""
    logits = model.vit(model.normalise(crops))
    seeds = [zlib.crc32(crop.cpu().numpy().tobytes()) for crop in crops]
    maps = [torch.rand(model.patches, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return _alike(model, logits, choose, torch.stack(maps).to(logits))


@torch.inference_mode()
def center(model: VitClassifier, crops: Crops, choose: Choose) -> Explanation:
    """A floor: the middle of every image, falling off by the square of the distance."""
    logits = model.vit(model.normalise(crops))
    rows, columns = (
        torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1) for side in model.grid
    )
    middle = -(rows[:, None].square() + columns.square()).flatten()
    return _alike(model, logits, choose, middle.to(logits).expand(len(crops), -1))


def refuse_unread(model: VitClassifier) -> None:
    """Raise ValueError where a model's attention, or its head, is not what maps are read from."""
    kinds = {type(block.attn if hasattr(block, "attn") else block) for block in model.vit.blocks}
    strange = sorted(kind.__name__ for kind in kinds - set(ONE_SOFTMAX))
    if strange:
        raise ValueError(f"it reads one attention a block, and {model.name} has {strange[0]}")
    if pooling(model.vit) not in ("token", "avg"):
        raise ValueError(
            "it reads a class token or a mean of tokens, and the head of "
            f"{model.name} pools otherwise ({pooling(model.vit) or 'not at all'})"
        )


def _identity(attention: Tensor) -> Float[Tensor, "tokens tokens"]:
    return torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)


def _sum_of(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Each image's own target's logit, summed: images do not meet, so neither do gradients."""
    return logits.gather(1, target[:, None]).sum()


def _read(
    model: VitClassifier, relation: Float[Tensor, "batch tokens tokens"]
) -> Float[Tensor, "batch patches"]:
    """What the head's tokens have of each patch."""
    is_token = pooling(model.vit) == "token"
    rows = relation[:, : model.readout] if is_token else relation[:, first_pooled(model.vit) :]
    return rows.mean(1)[:, model.prefix :]


def _alike(
    model: VitClassifier,
    logits: Float[Tensor, "batch classes"],
    choose: Choose,
    maps: Float[Tensor, "batch patches"],
) -> Explanation:
    """The same map for each of an image's targets."""
    targets = choose(logits)
    scores = maps[:, None].expand(-1, targets.shape[1], -1).unflatten(-1, model.grid)
    return Explanation(logits, targets, scores)


def _each(
    model: VitClassifier,
    logits: Float[Tensor, "batch classes"],
    choose: Choose,
    of_target: OfTarget,
) -> Explanation:
    """A map for each of an image's targets, by a pass backwards each."""
    logits_alone = logits.detach()
    targets = choose(logits_alone).clone()  # those of an inference are not for graphs
    scores = torch.stack([of_target(target).detach() for target in targets.unbind(1)], dim=1)
    return Explanation(logits_alone, targets, scores.unflatten(-1, model.grid))


def _rise_masks(
    images: Float[Tensor, "batch 3 height width"], count: int
) -> Iterator[Float[Tensor, "masks height width"]]:
    """`count` masks as large as the images, in as large chunks as the images allow."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(count, 1, RISE_CELLS, RISE_CELLS, generator=generator) < RISE_KEPT
    height, width = images.shape[-2:]
    down, across = -(-height // RISE_CELLS), -(-width // RISE_CELLS)
    tops = torch.randint(0, down, (count,), generator=generator)
    lefts = torch.randint(0, across, (count,), generator=generator)
    length = at_once(8 * images.nbytes, images)
    for drawn, top, left in zip(
        cells.to(images).split(length), tops.split(length), lefts.split(length), strict=True
    ):
        size = ((RISE_CELLS + 1) * down, (RISE_CELLS + 1) * across)
        large = F.interpolate(drawn, size=size, mode="bilinear", align_corners=False)[:, 0]
        places = zip(large, top.tolist(), left.tolist(), strict=True)
        yield torch.stack([mask[t : t + height, x : x + width] for mask, t, x in places])
