"""Every plain vision transformer that timm registers, and the form that explains it.

python -m explainer.coverage > docs/coverage.md
"""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch

from explainer.forms import Form
from explainer.loading import load_model
from explainer.models import PreprocessingOverrides, VitClassifier, patch_size
from explainer.reciprocam import ReciproCam
from explainer.structure import pooling, position_term

PLAIN_MODULES = (
    "vision_transformer",
    "deit",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "beit",
    "eva",
    "naflexvit",
)
DEPTH, CLASSES = 3, 4
NARROW = {"depth": DEPTH, "embed_dim": 48, "num_heads": 3, "num_classes": CLASSES}
FULL_WIDTH = {"vit_base_mci_224": {"embed_dim": 768, "num_heads": 12}}  # its stem's own width


@dataclass(frozen=True)
class Entry:
    """One name's line of the table; `tokens` are its prefix tokens."""

    name: str
    family: str
    block: str
    attention: str
    positions: str
    tokens: int
    pooling: str
    form: Form


def plain_names() -> list[str]:
    """The architectures of timm's plain-ViT modules, without deprecated aliases, as registered."""
    return [name for module in PLAIN_MODULES for name in _names_in(module)]


@cache
def _names_in(module: str) -> list[str]:
    return sorted(timm.list_models(module=module))


def reduced(name: str, other: Mapping[str, Any] | None = None) -> VitClassifier:
    """The architecture with random weights, three narrow blocks and a grid of 3 x 4 patches.

    All structural flags are its own, or those of `other`: only depth, width, heads, classes and
    input are smaller.
    """
    arguments: dict[str, Any] = NARROW | FULL_WIDTH.get(name, {})
    size: tuple[int, int] | None = None
    if name in _names_in("vision_transformer_hybrid"):
        with torch.device("meta"):
            down, across = patch_size(timm.create_model(name))
        arguments |= {"img_size": (3 * down, 4 * across)}
    elif name in _names_in("naflexvit"):
        arguments |= {"patch_size": 8}
        size = (24, 32)
    else:
        arguments |= {"patch_size": 8, "img_size": (24, 32)}
    if "sapiens2" in name:
        arguments |= {"num_kv_heads": (3, 1, 3)}  # grouped queries in the middle, as theirs
    overrides = PreprocessingOverrides(input_size=size)
    arguments |= other or {}
    return load_model(name, seed=0, model_args=arguments, overrides=overrides)


def entry(model: VitClassifier) -> Entry:
    """What the default convention does with a model."""
    block = model.vit.blocks[0]
    return Entry(
        model.name,
        type(model.vit).__name__,
        type(block).__name__,
        type(block.attn).__name__ if hasattr(block, "attn") else "within the block",
        position_term(model.vit) or "none",
        model.prefix,
        pooling(model.vit),
        ReciproCam().form(model),
    )


def markdown(entries: list[Entry]) -> str:
    """The table, and how many names each form serves."""
    counts = Counter((each.form.name, each.form.block) for each in entries)
    lines = [
        "# Which models are explained, and how",
        "",
        f"Made by `python -m explainer.coverage` from the {len(entries)} names that timm "
        f"{timm.__version__} registers in its plain-ViT modules; each is built small (depth "
        f"{DEPTH}) with its own structure and held against the definition in float64 by "
        "`tests/test_explainer_coverage.py`. The definition-only names need `--allow-definition`.",
        "",
        "| form of the default convention | names |",
        "|---|---|",
        *(f"| {form}, block {block} | {count} |" for (form, block), count in counts.most_common()),
        "",
        "| name | model | block | attention | positions in attention | prefix tokens | pooling | "
        "form | masked block |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {each.name} | {each.family} | {each.block} | {each.attention} | {each.positions} | "
            f"{each.tokens} | {each.pooling} | {each.form.name} | {each.form.block} |"
            for each in entries
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown([entry(reduced(name)) for name in plain_names()]))
