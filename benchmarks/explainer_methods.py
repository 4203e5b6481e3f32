"""The ways to explain that explainer.py times, and a plain forward pass.

The methods of other packages come from the dependency group `benchmarks`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from explainer import ReciproCam, VitClassifier, explain
from explainer.definition import definition
from explainer.masks import masks_of
from explainer.reciprocam import MIXED, Precision
from explainer.scores import class_scores
from explainer.structure import tokens_entering

Call = Callable[[Tensor], object]
Make = Callable[[VitClassifier, Precision], Call]


@dataclass(frozen=True)
class Method:
    """One way to explain: `make` prepares it for a model, and what it returns explains a batch."""

    title: str
    make: Make
    slow: bool = False
    pooling: str = "token"


def forward(model: VitClassifier, _precision: Precision) -> Call:
    @torch.inference_mode()
    def call(crops: Tensor) -> Tensor:
        return model.vit(model.normalise(crops))

    return call


def forward_converted(model: VitClassifier, precision: Precision) -> Call:
    """A forward pass of weights that are in float16 from the start, as no explanation's are."""
    converted = copy.deepcopy(model)
    converted.vit.to(MIXED)
    return forward(converted, precision)


def reciprocam(method: ReciproCam) -> Make:
    return lambda model, precision: (
        lambda crops: (
            explain(
                model, crops, method=method, precision=precision, allow_definition=True
            ).saliency
        )
    )


def by_definition(block: int) -> Make:
    """Mask by mask through the network's tail, also where a cheaper form would serve."""

    def make(model: VitClassifier, _precision: Precision) -> Call:
        @torch.inference_mode()
        def call(crops: Tensor) -> list[Tensor]:
            images = model.normalise(crops)
            entering = tokens_entering(model.vit, images, len(model.vit.blocks) + block)
            masks = masks_of(model.grid, "3x3", images.dtype, images.device)
            passes = definition(model, entering, masks, "masked")
            predicted = passes.unmasked.argmax(-1, keepdim=True)
            return [class_scores(each.logits, predicted, "log_odds") for each in passes.masked]

        return call

    return make


def grad_cam(*, all_gradients: bool) -> Make:
    """Grad-CAM at the last block's first norm, where the package's documentation puts it for ViTs.

    A model as loaded by timm computes the gradients of all its weights; those from the last block
    on are enough.
    """

    def make(model: VitClassifier, _precision: Precision) -> Call:
        from pytorch_grad_cam import GradCAM

        vit = copy.deepcopy(model.vit).requires_grad_(all_gradients)
        layer = vit.blocks[-1].norm1.requires_grad_(True)

        def to_grid(tokens: Tensor) -> Tensor:
            return tokens[:, model.prefix :].unflatten(1, model.grid).permute(0, 3, 1, 2)

        cam = GradCAM(model=vit, target_layers=[layer], reshape_transform=to_grid)
        return lambda crops: cam(model.normalise(crops), targets=None)

    return make


def integrated_gradients(model: VitClassifier, _precision: Precision) -> Call:
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(model.vit)

    def call(crops: Tensor) -> Tensor:
        images = model.normalise(crops)
        with torch.no_grad():
            target = model.vit(images).argmax(-1)
        found = method.attribute(images, target=target, n_steps=50, internal_batch_size=8)
        return found.sum(1)

    return call


METHODS = {
    "forward": Method("plain forward pass", forward),
    "forward-float16": Method("plain forward pass, weights in float16", forward_converted),
    "last-3x3": Method("ReciproCAM, last block, 3x3 masks", reciprocam(ReciproCam(-1))),
    "last-1x1": Method("ReciproCAM, last block, 1x1 masks", reciprocam(ReciproCam(-1, mask="1x1"))),
    "default": Method("ReciproCAM, last but one, 3x3 (default)", reciprocam(ReciproCam())),
    "second-1x1": Method("ReciproCAM, last but one, 1x1", reciprocam(ReciproCam(mask="1x1"))),
    "average-pooled": Method(
        "ReciproCAM, last but one, average-pooled model", reciprocam(ReciproCam()), pooling="avg"
    ),
    "attention-pooled": Method(
        "ReciproCAM, last but one, attention-pooled model", reciprocam(ReciproCam()), pooling="map"
    ),
    "definition-last": Method("mask by mask, last block, 3x3", by_definition(-1), slow=True),
    "definition-second": Method("mask by mask, last but one, 3x3", by_definition(-2), slow=True),
    "grad-cam": Method("Grad-CAM (grad-cam)", grad_cam(all_gradients=True)),
    "grad-cam-last": Method(
        "Grad-CAM, gradients of the last block only", grad_cam(all_gradients=False)
    ),
    "integrated-gradients": Method(
        "integrated gradients, 50 steps (captum)", integrated_gradients, slow=True
    ),
}
