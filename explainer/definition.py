"""The method by its definition, batched: one masked pass of the network's tail for each patch.

It serves what has no cheaper exact form: the kept residual and position terms in attention, before
the last block or under a head that reads all tokens, and poolings that cannot weigh equal tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from explainer.masks import Masks
from explainer.models import VitClassifier
from explainer.passes import WHOLE_BATCH, MaskLogits, Passes, at_once
from explainer.structure import Entering, attention_inputs, reading


def definition(
    model: VitClassifier,
    entering: Entering,
    groups: Sequence[Masks],
    residual: Literal["masked", "kept"],
) -> Passes:
    """Logits by whole masked sequences; `entering` enters the masked block."""
    block = model.vit.blocks[-len(entering.positions)]
    unmasked = block(entering.tokens, **entering.positions[0])
    return Passes(_rest(model, entering, unmasked), _chunks(model, entering, groups, residual))


def _chunks(
    model: VitClassifier,
    entering: Entering,
    groups: Sequence[Masks],
    residual: Literal["masked", "kept"],
) -> Iterator[MaskLogits]:
    block, tokens = model.vit.blocks[-len(entering.positions)], entering.tokens
    inputs = attention_inputs(block, tokens)
    length = at_once(4 * tokens.nbytes, tokens)
    for group in groups:
        for masks in group.split(length):
            weight = masks.over_tokens(model.prefix, tokens.shape[1])[..., None]
            read = [(y[:, None] * weight).flatten(0, 1) for y in inputs]
            whole = tokens[:, None].expand(-1, len(masks), -1, -1)
            sequences = (whole if residual == "kept" else whole * weight).flatten(0, 1)
            after = reading(block, read)(sequences, **entering.positions[0])
            logits = _rest(model, entering, after)
            yield MaskLogits(WHOLE_BATCH, masks.centres, logits.unflatten(0, (len(tokens), -1)))


def _rest(
    model: VitClassifier, entering: Entering, tokens: Float[Tensor, "sequences tokens width"]
) -> Float[Tensor, "sequences classes"]:
    """The blocks after the masked one, and the head."""
    later = model.vit.blocks[len(model.vit.blocks) - len(entering.positions) + 1 :]
    for block, position in zip(later, entering.positions[1:], strict=True):
        tokens = block(tokens, **position)
    with torch.autocast(tokens.device.type, enabled=False):
        return model.vit.forward_head(model.vit.norm(tokens))
