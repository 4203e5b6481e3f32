"""A timm vision transformer with its own evaluation preprocessing, class names and token layout."""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.data import resolve_model_data_config
from timm.layers import Attention
from timm.models import VisionTransformer, VisionTransformerDistilled
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from explainer.checkpoints import Checkpoint
from explainer.classes import ClassNames
from explainer.preprocess import Preprocessing


class ModelError(ValueError):
    """The model cannot be built as asked, or cannot be explained; the message says what to do."""


@dataclass(frozen=True)
class VitClassifier:
    """A class-token vision transformer that this package can explain, in evaluation mode."""

    name: str
    vit: VisionTransformer
    preprocessing: Preprocessing
    class_names: ClassNames
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Patch tokens as (rows, columns)."""
        rows, columns = self.vit.patch_embed.grid_size
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
        """How many leading tokens the head reads: the class token, and the distillation token."""
        return 2 if isinstance(self.vit, VisionTransformerDistilled) else 1

    def normalise(
        self, crops: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Crops as the network takes them, in its own dtype."""
        return self.preprocessing.normalise(crops, self.vit.patch_embed.proj.weight.dtype)

    def digest(self) -> str:
        """sha256 over every parameter and buffer in order of name: name, dtype, shape and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.vit.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class PreprocessingOverrides:
    """What replaces the model's own data configuration; None keeps it. Sizes in pixels."""

    input_size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None


class LinearHead(nn.Module):
    """A linear classifier over features: a linear probe, or with `normalise` a zero-shot matrix.

    A zero-shot matrix scores the cosine between features and class embeddings, times `scale`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.register_buffer("scale", None if scale is None else torch.tensor(scale))

    def forward(self, features: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch classes"]:
        if isinstance(self.scale, Tensor):
            features = F.normalize(features, dim=-1) * self.scale
        return F.linear(features, self.weight.to(features), self.bias)


def load_model(
    name: str,
    *,
    checkpoint: Checkpoint | None = None,
    seed: int | None = None,
    head: Checkpoint | None = None,
    class_names: tuple[str, ...] | None = None,
    model_args: Mapping[str, Any] | None = None,
    overrides: PreprocessingOverrides | None = None,
) -> VitClassifier:
    """Build a timm model with timm's pretrained weights, a checkpoint's, or random ones of `seed`.

    `name` is any timm name (`hf-hub:` too); a checkpoint's config.json supplies `model_args` and
    the data configuration. `head` is a classifier for weights that have none: `weight`
    [classes, width] and optionally `bias`; its metadata may hold `class_names` (JSON) and, for a
    zero-shot matrix, `scale`. Raises ModelError.
    """
    overrides = overrides or PreprocessingOverrides()
    cfg = checkpoint.pretrained_cfg if checkpoint else {}
    args = dict(checkpoint.config.get("model_args", {}) if checkpoint else {}) | dict(
        model_args or {}
    )
    if checkpoint is None and seed is None:
        vit = _pretrained(name, args, has_head=head is not None or class_names is not None)
    else:
        vit = _untrained(name, args | _classes_of(checkpoint), seed or 0)
    _refuse_unexplainable(name, vit)
    if checkpoint is not None:
        _load_state(name, vit, checkpoint)
    if head is not None:
        vit = _attach_head(name, vit, head)
        cfg = head.pretrained_cfg or cfg
    if vit.num_classes < 1:
        raise ModelError(
            f"{name} has no classifier, only features; give --head URL: a safetensors file with "
            f"'weight' [classes, {vit.num_features}] and optionally 'bias'"
        )
    if overrides.input_size is not None:
        vit.set_input_size(img_size=overrides.input_size)
    names = _class_names(name, vit, cfg, class_names)
    preprocessing = _preprocessing(vit, checkpoint, overrides)
    return VitClassifier(name, vit.eval().requires_grad_(False), preprocessing, names, args)


def _pretrained(name: str, args: Mapping[str, Any], *, has_head: bool) -> VisionTransformer:
    """timm's own weights; refused before they are fetched where they are known to lack classes."""
    _refuse_unknown(name)
    cfg = None if ":" in name else timm.get_pretrained_cfg(name)
    known = None if cfg is None else cfg.to_dict()
    if known is not None and not has_head:
        outputs = args.get("num_classes", known.get("num_classes", 0))
        names = ClassNames.of_timm(outputs, known)
        if outputs and names.names == tuple(map(str, range(outputs))):
            raise ModelError(
                f"the {outputs} outputs of {name}'s weights have no class names in timm: most "
                "likely an image embedding (CLIP's projection), not classes; give --head URL, "
                "or --class-names FILE if they are classes"
            )
        if not outputs:
            raise ModelError(
                f"{name}'s weights have no classifier, only features; give --head URL (a linear "
                "probe or a zero-shot matrix), or other weights"
            )
    try:
        return timm.create_model(name, pretrained=True, **args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"timm's weights of {name} could not be loaded: {reason} (to use weights from "
            "elsewhere give --checkpoint URL, or --checkpoint random:SEED for a benchmark)"
        ) from error


def _untrained(name: str, args: Mapping[str, Any], seed: int) -> VisionTransformer:
    _refuse_unknown(name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=False, **args)
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"{name} cannot be built with {dict(args)}: {error}") from error


def _refuse_unknown(name: str) -> None:
    architecture = name.split(".", maxsplit=1)[0]
    if ":" in name or timm.is_model(architecture):
        return
    nearest = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    raise ModelError(f"timm has no model {name!r}{hint}")


def _refuse_unexplainable(name: str, vit: VisionTransformer) -> None:
    """Hold the structure against what the fast forms are proven for."""
    if type(vit) not in (VisionTransformer, VisionTransformerDistilled):
        reason = f"it is a {type(vit).__name__}, not one of timm's plain VisionTransformer models"
    elif vit.global_pool != "token" or vit.attn_pool is not None:
        reason = f"its head pools by {vit.global_pool!r}, not by the class token"
    elif any(type(block) is not Block for block in vit.blocks):
        reason = f"its blocks are {type(vit.blocks[0]).__name__}, not pre-norm blocks"
    elif any(type(block.attn) is not Attention for block in vit.blocks):
        reason = f"its attention is {type(vit.blocks[0].attn).__name__}"
    elif any(not isinstance(block.attn.k_norm, nn.Identity) for block in vit.blocks):
        reason = "it normalises queries and keys (qk_norm)"
    elif any(block.attn.gate is not None for block in vit.blocks):
        reason = "its attention is gated"
    else:
        return
    raise ModelError(f"{name} cannot be explained by this version: {reason}")


def _classes_of(checkpoint: Checkpoint | None) -> dict[str, int]:
    """The number of classes that a checkpoint's own head has, as an argument for timm."""
    weight = None if checkpoint is None else checkpoint.state.get("head.weight")
    if checkpoint is None:
        return {}
    return {"num_classes": 0 if weight is None else len(weight)}


def _load_state(name: str, vit: VisionTransformer, checkpoint: Checkpoint) -> None:
    own = vit.state_dict()
    given = checkpoint.state
    problems = [f"lacks {key}" for key in own if key not in given]
    problems += [f"has {key}, which the model lacks" for key in given if key not in own]
    problems += [
        f"{key} is {tuple(given[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"the checkpoint does not fit {name}: {'; '.join(problems[:3])}{more}; give the model "
            "that it was trained as, with --model-args where it differs from timm's"
        )
    vit.load_state_dict(dict(given))


def _attach_head(name: str, vit: VisionTransformer, head: Checkpoint) -> VisionTransformer:
    weight = head.state.get("weight", head.state.get("head.weight"))
    bias = head.state.get("bias", head.state.get("head.bias"))
    if weight is None or weight.ndim != 2:
        raise ModelError(
            f"--head needs a tensor 'weight' [classes, width]; got {sorted(head.state)}"
        )
    scale = float(head.metadata["scale"]) if "scale" in head.metadata else None
    classifier = LinearHead(weight, bias, scale)
    width = weight.shape[1]
    if width == vit.num_features:
        vit.head = classifier
    elif width == vit.num_classes:
        vit.head = nn.Sequential(vit.head, classifier)
    else:
        raise ModelError(
            f"--head takes features of width {width}; {name} has {vit.num_features} features"
            + (f" and {vit.num_classes} outputs" if vit.num_classes else "")
        )
    vit.num_classes = len(weight)
    return vit


def _class_names(
    name: str, vit: VisionTransformer, cfg: Mapping[str, Any], given: tuple[str, ...] | None
) -> ClassNames:
    classes = int(vit.num_classes)
    if given is not None and len(given) != classes:
        raise ModelError(
            f"--class-names holds {len(given)} names; {name} has {classes} classes; one a line, in "
            "the order of the model's outputs"
        )
    return ClassNames(given) if given else ClassNames.of_timm(classes, cfg or vit.pretrained_cfg)


def _preprocessing(
    vit: VisionTransformer, checkpoint: Checkpoint | None, overrides: PreprocessingOverrides
) -> Preprocessing:
    cfg = checkpoint.pretrained_cfg if checkpoint else {}
    config = resolve_model_data_config(vit, pretrained_cfg={**vit.pretrained_cfg, **cfg})
    own = Preprocessing(
        input_size=tuple(vit.patch_embed.img_size),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
    )
    given = {key: value for key, value in vars(overrides).items() if value is not None}
    return replace(own, **given)
