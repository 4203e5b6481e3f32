"""From a model's name and its weights to a VitClassifier, or to an error that says what to do."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import VisionTransformerDistilled, get_arch_pretrained_cfgs
from torch import nn

from explainer.checkpoints import Checkpoint
from explainer.classes import ClassNames
from explainer.heads import LinearHead
from explainer.models import ModelError, PreprocessingOverrides, VitClassifier, patch_size
from explainer.preprocess import Preprocessing
from explainer.structure import BLOCKS, EMBEDDINGS, TimmModule, pooling


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
    zero-shot matrix, `scale`. Where both the features and the outputs of the weights are of its
    width, a zero-shot matrix goes onto the outputs, any other head onto the features. What can be
    told without weights is refused before they are fetched. Raises ModelError, and CheckpointError
    for a head's file that holds none.
    """
    args = (checkpoint.model_args if checkpoint else {}) | dict(model_args or {})
    random = checkpoint is None and seed is not None
    structure = _structure(name, args | _classes_of(checkpoint), seed if random else None)
    classifier = None if head is None else LinearHead.of(head)
    if checkpoint is None and seed is None:
        _refuse_new_classifier(name, structure)
    if classifier is not None:
        _attach(name, structure, classifier)
    names = _class_names(name, structure, head or checkpoint, class_names)
    if names.are_indices and head is None and class_names is None and seed is None:
        _refuse_embedding(name, structure)
    vit = structure
    if not random:
        vit = _with_weights(name, args, checkpoint, seed)
        if classifier is not None:
            _attach(name, vit, classifier)
    overrides = overrides or PreprocessingOverrides()
    if overrides.input_size is not None:
        _resize_input(name, vit, overrides.input_size)
    preprocessing = _preprocessing(name, vit, checkpoint, overrides)
    _refuse_not_finite(name, vit)
    return VitClassifier(name, vit.eval().requires_grad_(False), preprocessing, names, args)


def _structure(name: str, args: Mapping[str, Any], seed: int | None) -> TimmModule:
    """The model with random weights of `seed`, or without any; refused where not explained."""
    architecture = name.split(".", maxsplit=1)[0]
    if not (":" in name or "/" in name or timm.is_model(architecture)):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise ModelError(f"timm has no model {name!r}{hint}")
    with torch.device("meta") if seed is None else nullcontext():
        model = _create(name, args, seed=seed or 0)
    _refuse_unexplainable(name, model, args)
    return model


def _with_weights(
    name: str, args: Mapping[str, Any], checkpoint: Checkpoint | None, seed: int | None
) -> TimmModule:
    if checkpoint is None:
        return _create(name, args, pretrained=True)
    if seed is not None:
        raise ModelError("weights are a checkpoint's or random ones of a seed; got both")
    vit = _create(name, {**args, **_classes_of(checkpoint)})
    _load_state(name, vit, checkpoint)
    return vit


def _create(
    name: str, args: Mapping[str, Any], *, seed: int = 0, pretrained: bool = False
) -> TimmModule:
    """timm's create_model, with torch's global random state left as it was."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return timm.create_model(name, pretrained=pretrained, **args)
    except OSError as error:
        raise ModelError(
            f"{name} could not be fetched: {_one_line(error)} (to use weights from elsewhere give "
            "--checkpoint URL, or --checkpoint random:SEED for a benchmark)"
        ) from error
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        tags = [known.partition(".")[2] for known in get_arch_pretrained_cfgs(name)]
        hint = f"; its tags: {', '.join(tags)}" if "Invalid pretrained tag" in str(error) else ""
        given = f" with {dict(args)}" if args else ""
        raise ModelError(f"{name} cannot be built{given}: {_one_line(error)}{hint}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _refuse_unexplainable(name: str, vit: TimmModule, args: Mapping[str, Any]) -> None:
    """Hold the structure against what the forms are proven for."""
    if type(vit) not in EMBEDDINGS:
        known = ", ".join(family.__name__ for family in EMBEDDINGS)
        reason = (
            f"it is a {type(vit).__name__}, and the method masks patch tokens in front of a block "
            f"of a plain vision transformer ({known})"
        )
    elif any(type(block) not in BLOCKS for block in vit.blocks):
        strange = next(block for block in vit.blocks if type(block) not in BLOCKS)
        reason = f"its blocks are {type(strange).__name__}, which are not known to this version"
    elif args.get("in_chans", 3) != 3:
        reason = f"images have 3 channels; got in_chans {args['in_chans']} in --model-args"
    elif not pooling(vit):
        reason = "its head pools no tokens; give global_pool in --model-args"
    else:
        return
    raise ModelError(f"{name} cannot be explained: {reason}")


def _refuse_new_classifier(name: str, vit: TimmModule) -> None:
    """timm silently puts a random classifier where another number of classes is asked for."""
    own = vit.pretrained_cfg["num_classes"]
    if vit.num_classes not in (0, own):
        raise ModelError(
            f"{name}'s own weights have {own} classes; with num_classes {vit.num_classes} the "
            "classifier would be random; give --checkpoint or --head"
        )


def _refuse_embedding(name: str, vit: TimmModule) -> None:
    """Refuse outputs without class names where timm's weights of this architecture have as many."""
    known = get_arch_pretrained_cfgs(vit.pretrained_cfg["architecture"]).values()
    if vit.num_classes in {cfg.num_classes for cfg in known}:
        raise ModelError(
            f"the {vit.num_classes} outputs of {name}'s weights have no class names: most likely "
            "an image embedding (CLIP's projection), not classes; give --head URL, or "
            "--class-names FILE if they are classes"
        )


def _classes_of(checkpoint: Checkpoint | None) -> dict[str, int]:
    """The number of classes that a checkpoint's own head has, as an argument for timm."""
    if checkpoint is None:
        return {}
    weight = checkpoint.state.get("head.weight")
    return {"num_classes": 0 if weight is None else len(weight)}


def _load_state(name: str, vit: TimmModule, checkpoint: Checkpoint) -> None:
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


def _refuse_not_finite(name: str, vit: TimmModule) -> None:
    """One NaN among the weights makes every map NaN, and no image is to blame."""
    weights = vit.state_dict().items()
    bad = [key for key, tensor in weights if not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ModelError(
            f"{name}'s weights hold NaN or infinity, in {bad[0]}{more}: no image can be explained "
            "with them; give weights that are finite"
        )


def _attach(name: str, vit: TimmModule, head: LinearHead) -> None:
    """Put `head` onto the features, or after the weights' own outputs (CLIP's projection)."""
    if isinstance(vit, VisionTransformerDistilled):
        raise ModelError(f"{name} has a classifier for each of its two class tokens; --head is one")
    if head.width == vit.num_classes and (head.is_zero_shot or head.width != vit.num_features):
        vit.head = nn.Sequential(vit.head, head)
    elif head.width == vit.num_features:
        vit.head = head
    else:
        outputs = f" and {vit.num_classes} outputs" if vit.num_classes else ""
        raise ModelError(
            f"--head takes features of width {head.width}; {name} has {vit.num_features} "
            f"features{outputs}"
        )
    vit.num_classes = head.classes


def _resize_input(name: str, vit: TimmModule, size: tuple[int, int]) -> None:
    patch = patch_size(vit)
    if any(side < step or side % step for side, step in zip(size, patch, strict=True)):
        raise ModelError(
            f"--input-size must be multiples of {name}'s patches of {patch[0]} x {patch[1]} "
            f"pixels; got {size[0]} x {size[1]}"
        )
    if hasattr(vit, "set_input_size"):
        vit.set_input_size(img_size=size)


def _class_names(
    name: str,
    vit: TimmModule,
    source: Checkpoint | None,
    given: tuple[str, ...] | None,
) -> ClassNames:
    """The names as given, or else those in `source`, where the classifier is from, or timm's."""
    if vit.num_classes < 1:
        raise ModelError(
            f"{name} has no classifier, only features; give --head URL (a linear probe "
            f"or a zero-shot matrix): 'weight' [classes, {vit.num_features}], optionally 'bias'"
        )
    if given is not None and len(given) != vit.num_classes:
        raise ModelError(
            f"--class-names holds {len(given)} names; {name} has {vit.num_classes} classes; one a "
            "line, in the order of the model's outputs"
        )
    cfg = vit.pretrained_cfg if source is None else source.pretrained_cfg
    try:
        return ClassNames(given) if given else ClassNames.of_timm(vit.num_classes, cfg)
    except ValueError as error:
        raise ModelError(f"{error} of {name}; give --class-names FILE") from error


def _preprocessing(
    name: str,
    vit: TimmModule,
    checkpoint: Checkpoint | None,
    overrides: PreprocessingOverrides,
) -> Preprocessing:
    cfg = vit.pretrained_cfg | (checkpoint.pretrained_cfg if checkpoint else {})
    config = resolve_model_data_config(vit, pretrained_cfg=cfg)
    own = {
        "input_size": _input_size(vit, config["input_size"]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        "interpolation": config["interpolation"],
    }
    given = {key: value for key, value in vars(overrides).items() if value is not None}
    try:
        return Preprocessing(**(own | given))
    except ValueError as error:
        raise ModelError(f"the preprocessing of {name}: {error}") from error


def _input_size(vit: TimmModule, configured: Sequence[int]) -> tuple[int, int]:
    """What the model was built for; NaFlexVit takes any size, so there the configuration's."""
    if hasattr(vit, "patch_embed"):
        height, width = vit.patch_embed.img_size
        return height, width
    return configured[-2], configured[-1]
