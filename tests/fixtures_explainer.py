"""Models whose maps have a shape, and the definition that they are held against."""

from collections.abc import Callable
from typing import Any

import pytest

# torch is imported where it is needed: of the processes of a test run, one runs no test.


@pytest.fixture(scope="session")
def enlivened() -> Callable[..., Any]:
    """Gives a model weights large enough for maps to have a shape; the same for the same model."""
    import torch

    def enliven(model: Any, dtype: torch.dtype = torch.float64, scale: float = 0.25) -> Any:
        generator = torch.Generator().manual_seed(1)
        model.vit.to(dtype)
        for name, parameter in model.vit.named_parameters():
            if "backbone" in name:  # a convolutional stem's norms would amplify the noise
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            share = 4 * scale if name.startswith("head") else scale
            parameter.add_(share * noise.to(dtype))
        return model

    return enliven


@pytest.fixture(scope="session")
def random_crops() -> Callable[..., Any]:
    """Seeded uint8 crops of a model's input size."""
    import torch

    def crops(model: Any, batch: int = 7) -> torch.Tensor:
        shape = (batch, 3, *model.preprocessing.input_size)
        generator = torch.Generator().manual_seed(2)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return crops


@pytest.fixture(scope="session")
def by_definition() -> Callable[..., Any]:
    """The definition's logits under every mask, at the block that a method uses on a model."""
    from explainer.reference import masked_logits

    def logits(model: Any, images: Any, method: Any) -> Any:
        return masked_logits(
            model.vit,
            model.normalise(images),
            model.grid,
            block=method.form(model).block,
            residual=method.residual,
            mask=method.mask,
        )

    return logits


@pytest.fixture(scope="session")
def relative_error() -> Callable[..., float]:
    """Largest error of an explanation's maps over the range of the definition's own.

    A range under 1e-2 would prove nothing and fails.
    """
    import torch

    from explainer.reference import log_odds

    def error(got: Any, logits: torch.Tensor, score: str = "log_odds") -> float:
        of_class = log_odds if score == "log_odds" else lambda values, k: values[..., k]
        worst = 0.0
        for i, targets in enumerate(got.targets.tolist()):
            for rank, target in enumerate(targets):
                want = of_class(logits[i], target)
                span = want.max() - want.min()
                assert span >= 1e-2
                worst = max(worst, float((got.scores[i, rank].flatten() - want).abs().max() / span))
        return worst

    return error
