"""A classifier over a model's features, for weights that have none."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from explainer.checkpoints import Checkpoint, CheckpointError


class LinearHead(nn.Module):
    """A linear classifier over features: a linear probe, or with `scale` a zero-shot matrix.

    A zero-shot matrix scores the cosine between features and class embeddings, times `scale`.
    """

    scale: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.register_buffer("scale", None if scale is None else torch.tensor(scale))

    @classmethod
    def of(cls, head: Checkpoint) -> "LinearHead":
        """Read `weight` [classes, width], `bias` [classes] and the metadata's `scale`.

        The names may begin with `head.`, as in a whole model's weights. Raises CheckpointError.
        """
        weight = head.state.get("weight", head.state.get("head.weight"))
        bias = head.state.get("bias", head.state.get("head.bias"))
        if weight is None or weight.ndim != 2:
            got = {key: tuple(tensor.shape) for key, tensor in sorted(head.state.items())[:5]}
            raise CheckpointError(f"--head needs a tensor 'weight' [classes, width]; got {got}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise CheckpointError(
                f"--head's 'bias' must be [{len(weight)}], one a row of 'weight'; got "
                f"{list(bias.shape)}"
            )
        return cls(weight, bias, _scale(head.metadata.get("scale")))

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @property
    def is_zero_shot(self) -> bool:
        return self.scale is not None

    def forward(self, features: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        if self.scale is not None:
            features = F.normalize(features, dim=-1) * self.scale
        return F.linear(features, self.weight, self.bias)


def _scale(text: str | None) -> float | None:
    """A zero-shot matrix's factor, from text because safetensors' metadata holds only text."""
    if text is None:
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise CheckpointError(f"--head's metadata 'scale' must be a positive number; got {text!r}")
    return scale
