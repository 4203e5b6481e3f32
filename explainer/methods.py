"""Every way to explain, by name: ViT-ReciproCAM and what it is held against."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from jaxtyping import Int, UInt8
from torch import Tensor

from explainer import baselines, reciprocam
from explainer.baselines import Attribution
from explainer.gradients import refuse_unbalanced
from explainer.models import VitClassifier
from explainer.reciprocam import Explanation, Precision, ReciproCam
from explainer.scores import Target, select_targets

RECIPROCAM, RISE, RISE_MASKS = "reciprocam", "rise", 1000
BASELINES: Mapping[str, Attribution] = {
    "rollout": baselines.rollout,
    "relevance": baselines.relevance,
    "gradcam": baselines.gradcam,
    "legrad": baselines.legrad,
    "libragrad": baselines.libragrad,
    "random": baselines.random,
    "center": baselines.center,
}
# What a pass with gradients may keep at once, in bytes: on a GPU small parts cost more than work.
GRAPH_BYTES = {"cpu": 2**30, "cuda": 2**33}
RULE = (
    f"a method is {RECIPROCAM}, {', '.join(BASELINES)} or {RISE}, and may have options: "
    f"{RECIPROCAM}:-1:1x1:kept (block, mask, residual, logit), {RISE}:4000 (masks)"
)


@dataclass(frozen=True)
class Baseline:
    """One of BASELINES, or RISE with its number of masks; no option else changes a map."""

    name: str
    masks: int | None = None

    def check(self, model: VitClassifier, *, allow_definition: bool = False) -> None:
        """Raise ValueError, with the reason, where the method is not defined for `model`."""
        try:
            if self.name in ("rollout", "relevance", "legrad"):
                baselines.refuse_unread(model)
            if self.name == "libragrad":
                refuse_unbalanced(model)
        except ValueError as error:
            raise ValueError(f"{self.name} cannot explain this model: {error}") from error

    def resolved(self, model: VitClassifier) -> "Baseline":
        """The same: nothing is left to the model."""
        return self

    def explain(
        self, model: VitClassifier, crops: Tensor, target: Target, labels: Tensor | None
    ) -> Explanation:
        """Explain a batch in parts whose graphs fit into GRAPH_BYTES."""
        attribution = BASELINES.get(self.name)
        if attribution is None:
            attribution = partial(baselines.rise, masks=self.masks or RISE_MASKS)
        budget = GRAPH_BYTES["cpu" if crops.device.type == "cpu" else "cuda"]
        length = max(1, budget // _graph_bytes(model))
        parts = []
        for start in range(0, len(crops), length):
            chosen = slice(start, start + length)
            given = None if labels is None else labels[chosen]
            choose = partial(select_targets, target=target, labels=given)
            parts.append(attribution(model, crops[chosen], choose))
        return Explanation.concatenated(parts)


Method: TypeAlias = ReciproCam | Baseline


def explain(
    model: VitClassifier,
    crops: UInt8[Tensor, "batch 3 height width"],
    *,
    target: Target | str = "predicted",
    labels: Int[Tensor, " batch"] | None = None,
    method: Method | str | None = None,
    precision: Precision = "float32",
    allow_definition: bool = False,
) -> Explanation:
    """Explain a batch of crops: which patches carry the score of each target class.

    `labels` are class indices, needed for target `label` only. `method` is ViT-ReciproCAM as
    docs/reciprocam.md recommends it, unless one is given, as a record or by its name. `precision`,
    which only ReciproCAM takes: see `reciprocam.explain`. Raises ValueError where the target asks
    for what is not there, or the method has no cheap exact form, or none at all, on `model`, and
    PrecisionError where float16 is too narrow for it. The model is not changed.
    """
    method = parse(method) if isinstance(method, str) else method or ReciproCam()
    target = Target.parse(target) if isinstance(target, str) else target
    if isinstance(method, ReciproCam):
        return reciprocam.explain(
            model,
            crops,
            target=target,
            labels=labels,
            method=method,
            precision=precision,
            allow_definition=allow_definition,
        )
    method.check(model)
    if precision != "float32":
        raise ValueError(f"{method.name} is computed in float32; mixed is for {RECIPROCAM} alone")
    return method.explain(model, crops, target, labels)


def parse(text: str) -> Method:
    """A method from its name and options, such as reciprocam:-1:1x1. Raises ValueError."""
    name, *options = text.split(":")
    if name == RECIPROCAM:
        chosen = [_option(option, text) for option in options]
        settings = dict(chosen)
        if len(settings) < len(chosen):
            raise ValueError(f"{text!r} gives an option twice")
        return replace(ReciproCam(), **settings)
    if name == RISE and len(options) <= 1 and all(re.fullmatch("[1-9][0-9]*", o) for o in options):
        return Baseline(RISE, int(options[0]) if options else RISE_MASKS)
    if name in BASELINES and not options:
        return Baseline(name)
    raise ValueError(f"{RULE}; got {text!r}")


def _option(option: str, text: str) -> tuple[str, Any]:
    """One of ReciproCAM's settings and its value, by which they are told apart."""
    if re.fullmatch("-[1-9][0-9]*", option):
        return "block", int(option)
    values = {"3x3": "mask", "1x1": "mask", "kept": "residual", "masked": "residual"}
    values |= {"logit": "score", "log_odds": "score"}
    if option not in values:
        raise ValueError(f"{RULE}; got {text!r}")
    return values[option], option


def form_name(method: Method, model: VitClassifier) -> str:
    """Which exact form serves ReciproCAM on a model; any other method is as published."""
    return method.form(model).name if isinstance(method, ReciproCam) else "published"


def passes_by_definition(method: Method, model: VitClassifier) -> float | None:
    """About how many forward passes an image costs where only the definition is exact."""
    form = method.form(model) if isinstance(method, ReciproCam) else None
    return form.passes(model) if form is not None and form.name == "definition" else None


def shown(method: Method) -> str:
    """What a method is, in words; ReciproCAM's block must be known."""
    if isinstance(method, ReciproCam):
        return f"block {method.block}, {method.residual} residual, {method.mask} masks"
    return f"method {method.name}" + (f", {method.masks} masks" if method.masks else "")


def identity(method: Method) -> dict[str, Any]:
    """All that changes a map, as plain JSON."""
    given = asdict(method)
    return {key: value for key, value in given.items() if key != "masks" or value is not None}


def _graph_bytes(model: VitClassifier) -> int:
    """About what an image's graph keeps: each block's attention and tokens, and their gradients."""
    tokens, width = model.prefix + model.patches, int(model.vit.embed_dim)
    heads = max(getattr(module, "num_heads", 1) for module in model.vit.blocks.modules())
    block = heads * tokens**2 * 3 + 16 * tokens * width
    return len(model.vit.blocks) * block * next(model.vit.parameters()).element_size()
