"""A timm vision transformer with its own evaluation preprocessing, class names and token layout."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, UInt8
from timm.models import VisionTransformerDistilled
from torch import Tensor

from explainer.classes import ClassNames
from explainer.preprocess import Preprocessing
from explainer.structure import TimmModule


class ModelError(ValueError):
    """The model cannot be built as asked, or cannot be explained; the message says what to do."""


@dataclass(frozen=True)
class VitClassifier:
    """A plain vision transformer that this package can explain, in evaluation mode."""

    name: str
    vit: TimmModule
    preprocessing: Preprocessing
    class_names: ClassNames
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch tokens as (rows, columns)."""
        embedding = self.vit.embeds if hasattr(self.vit, "embeds") else self.vit.patch_embed
        if hasattr(embedding, "grid_size") and not getattr(embedding, "dynamic_img_pad", False):
            rows, columns = embedding.grid_size
        else:  # as large as the image, and rounded up where timm pads
            rows, columns = embedding.dynamic_feat_size(self.preprocessing.input_size)
        return int(rows), int(columns)

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def readout(self) -> int:
        """How many leading tokens a token-pooled head reads: of distilled models two."""
        return 2 if isinstance(self.vit, VisionTransformerDistilled) else 1

    def normalise(
        self, crops: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Crops as the network takes them, in its own dtype."""
        return self.preprocessing.normalise(crops, next(self.vit.parameters()).dtype)

    def digest(self) -> str:
        """sha256 over every parameter and buffer in order of name: name, dtype, shape and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.vit.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().data)
        return digest.hexdigest()


def patch_size(vit: TimmModule) -> tuple[int, int]:
    """Pixels (down, across) that become one token, a convolutional stem's stride included."""
    embedding = vit.embeds if hasattr(vit, "embeds") else vit.patch_embed
    down, across = embedding.feat_ratio(as_scalar=False)
    return int(down), int(across)


@dataclass(frozen=True)
class PreprocessingOverrides:
    """What replaces the model's own data configuration; None keeps it. Sizes in pixels.

    `exact` is no part of it, and is taken as it is: see Preprocessing.
    """

    input_size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    exact: bool = False
