"""Weights as bytes: safetensors, or torch's pickle format read with weights_only."""

import argparse
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models import clean_state_dict
from torch import Tensor


class CheckpointError(ValueError):
    """The bytes are no weights that this program reads, or weights of something else."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and timm's model configuration (`config.json`) where there is one."""

    state: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's pretrained_cfg with its label names, nested or flat in config.json, else empty."""
        cfg = dict(self.config.get("pretrained_cfg") or self.config)
        for key in ("label_names", "num_classes"):
            cfg[key] = self.config.get(key, cfg.get(key))
        if "class_names" in self.metadata:
            cfg["label_names"] = _names(self.metadata["class_names"])
        return {key: value for key, value in cfg.items() if value is not None}

    @property
    def model_args(self) -> dict[str, Any]:
        """timm's model arguments in config.json, with the input size that the weights are for."""
        args = dict(self.config.get("model_args") or {})
        cfg = self.pretrained_cfg
        if cfg.get("fixed_input_size") and "input_size" in cfg:
            args.setdefault("img_size", list(cfg["input_size"][-2:]))
        return args


def _names(text: str) -> list[str]:
    """Class names from safetensors' metadata, which holds only text: a JSON list."""
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"metadata 'class_names' must be a JSON list of names; got {text!r}")
    return names


def read_checkpoint(data: bytes, name: str, config: bytes | None = None) -> Checkpoint:
    """Read weights from a file's bytes; `name` tells the format (.safetensors, .pth, .pt, .bin).

    Takes timm's training checkpoints (`state_dict_ema` before `state_dict`, as timm does), `model`,
    and prefixes of wrappers (`module.`, `_orig_mod.`). Raises CheckpointError.
    """
    metadata: Mapping[str, str] = {}
    if not data:
        raise CheckpointError(f"{name} is empty (0 bytes)")
    if name.endswith(".safetensors"):
        state, metadata = _read_safetensors(data, name)
    elif name.endswith((".pth", ".pt", ".bin", ".pth.tar")):
        state = _read_torch(data, name)
    else:
        raise CheckpointError(
            f"a checkpoint ends in .safetensors, .pth, .pth.tar, .pt or .bin; got {name!r}"
        )
    return Checkpoint(clean_state_dict(dict(state)), _read_config(config, name), metadata)


def _read_safetensors(data: bytes, name: str) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    try:
        state = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{name} is not a readable safetensors file: {error}") from error
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    return state, header.get("__metadata__", {})


def _read_torch(data: bytes, name: str) -> Mapping[str, Tensor]:
    try:
        # timm's training checkpoints hold their arguments as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever damaged bytes lead it into
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {stranger[1]}" if stranger else f"{type(error).__name__}: {error}"[:80]
        raise CheckpointError(
            f"{name} is not readable by torch with weights_only (nothing else is tried, because "
            f"other pickles can run code): {reason}"
        ) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not tensors:
        raise CheckpointError(
            f"{name} holds no state dict: want tensors by name, at the top or under "
            "state_dict_ema, state_dict or model"
        )
    return content


def _read_config(config: bytes | None, name: str) -> Mapping[str, Any]:
    if config is None:
        return {}
    try:
        content = json.loads(config)
    except ValueError as error:
        raise CheckpointError(f"config.json beside {name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"config.json beside {name} must hold an object; got {type(content).__name__}"
        )
    for key in ("pretrained_cfg", "model_args"):
        if not isinstance(content.get(key) or {}, dict):
            raise CheckpointError(f"config.json beside {name}: {key} must be an object")
    return content
