"""Explain a batch of images: tensors in, tensors out; knows neither Ray nor storage.

from explainer import explain, load_model
model = load_model("deit_small_patch16_224")
maps = explain(model, crops).saliency  # uint8 [batch, 3, h, w] -> [batch, targets, rows, columns]
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from explainer.loading import load_model
    from explainer.methods import Method, explain
    from explainer.models import VitClassifier
    from explainer.preprocess import decode
    from explainer.reciprocam import Explanation, Precision, PrecisionError, ReciproCam
    from explainer.scores import Target

__all__ = [
    "Explanation",
    "Method",
    "Precision",
    "PrecisionError",
    "ReciproCam",
    "Target",
    "VitClassifier",
    "decode",
    "explain",
    "load_model",
]

_HOMES = {
    "Explanation": "explainer.reciprocam",
    "Precision": "explainer.reciprocam",
    "PrecisionError": "explainer.reciprocam",
    "ReciproCam": "explainer.reciprocam",
    "Target": "explainer.scores",
    "VitClassifier": "explainer.models",
    "decode": "explainer.preprocess",
    "Method": "explainer.methods",
    "explain": "explainer.methods",
    "load_model": "explainer.loading",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for: what only decodes need not wait for timm."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
