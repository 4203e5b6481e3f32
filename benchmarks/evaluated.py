"""`saliency explain` and `saliency evaluate` on a benchmark's pictures, as their users run them."""

import argparse
from pathlib import Path

from jobs.cli import run
from jobs.config import EvaluateConfig, ExecutionConfig, ExplainConfig, InputConfig, ModelConfig
from jobs.replica_config import ReplicaConfig


def explain_and_evaluate(
    folder: Path, weights: Path, options: argparse.Namespace, boxes: Path | None = None
) -> int:
    """Both jobs on folder/pictures, as their users run them, with two replicas; the exit code."""
    explained = run(
        ExplainConfig(
            model=ModelConfig("vit_tiny_patch16_224", checkpoint=str(weights)),
            out=str(folder / "run"),
            input=InputConfig(images=str(folder / "pictures")),
            execution=ExecutionConfig(replicas=2),
        )
    )
    config = EvaluateConfig(
        run=str(folder / "run"),
        methods=options.methods,
        sample=2 * options.images,
        boxes=None if boxes is None else str(boxes),
        execution=ReplicaConfig(replicas=2),
    )
    return explained or run(config)
