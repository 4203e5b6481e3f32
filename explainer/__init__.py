"""Explain a batch of images: tensors in, tensors out; knows neither Ray nor storage.

from explainer import explain, load_model
model = load_model("deit_small_patch16_224")
maps = explain(model, crops).saliency  # uint8 [batch, 3, h, w] -> [batch, targets, rows, columns]
"""

from explainer.loading import load_model
from explainer.models import VitClassifier
from explainer.preprocess import decode
from explainer.reciprocam import Explanation, Precision, PrecisionError, ReciproCam, explain
from explainer.scores import Target

__all__ = [
    "Explanation",
    "Precision",
    "PrecisionError",
    "ReciproCam",
    "Target",
    "VitClassifier",
    "decode",
    "explain",
    "load_model",
]
