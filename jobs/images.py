"""Which images a configuration means: its manifest, and the run that it extends."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pyarrow as pa

from jobs.config import ExplainConfig, InputConfig
from storage.columns import ColumnNames
from storage.locations import Location
from storage.manifests import (
    Manifest,
    ManifestError,
    read_folder,
    read_manifest,
    read_stored,
)
from storage.runs import FINISHED, Run, differences, open_run
from storage.selection import Selection
from storage.trust import named

# What may differ between a run and the one that it extends.
OF_THE_IMAGES = ("manifest", "shard_size")


def read_images(config: InputConfig, extended: Run | None, options: Mapping[str, Any]) -> Manifest:
    """The manifest that --images or --manifest names, and of it what is selected.

    Raises ManifestError, NothingNew, StorageUnavailable.
    """
    selection = selection_of(config, None if extended is None else _known(extended))
    if config.images is not None:
        return read_folder(named(config.images, options), selection)
    names = ColumnNames(config.uri_column, config.label_column, config.id_column)
    return read_manifest(named(config.manifest or "", options), names, selection)


def may_be_local(config: InputConfig) -> bool:
    """Whether the manifest may name local files and private hosts: one's own, or by permission."""
    return config.allow_local or Location(config.images or config.manifest or "").is_local


def selection_of(config: InputConfig, known: pa.Array | None) -> Selection:
    """Which of the rows are meant; `known` are the image_ids that the run to extend has."""
    return Selection(
        where=config.where,
        classes=tuple(name.strip() for name in (config.classes or "").split(",") if name.strip()),
        known=known,
        sample=config.sample,
        seed=config.seed,
        limit=config.limit,
    )


def input_of(run: Run) -> InputConfig:
    """The images that a run was asked for, from its run.json; without options of their store."""
    asked = run.description.get("config", {}).get("input", {})
    known = {field.name for field in fields(InputConfig)} - {"storage"}
    return InputConfig(**{key: value for key, value in asked.items() if key in known})


def selects_everything(config: InputConfig) -> bool:
    """Whether all images are meant that --images or --manifest names."""
    known = None if config.extend is None else pa.array([], pa.string())
    return selection_of(config, known).is_everything


def stored_manifest(run: Run, options: Mapping[str, Any]) -> Manifest:
    """The manifest that a run was made from: its own manifest.parquet, or the Parquet list, which
    is read with `options`. Raises ManifestError, StorageUnavailable."""
    if run.manifest.name in run.root.names():
        return read_stored(run.manifest)
    missing = ManifestError(f"{run.manifest} is missing")
    config = input_of(run)
    if config.manifest is None or not selects_everything(config):
        raise missing
    manifest = read_images(config, None, options)
    if manifest.given is None:
        raise missing
    return manifest


def extended_run(config: ExplainConfig, options: Mapping[str, Any]) -> Run | None:
    """The run that --extend names, which must be finished. Raises NotARun, ValueError."""
    if config.input.extend is None:
        return None
    run = open_run(named(config.input.extend, options))
    summary = run.read_summary()
    state = "unfinished" if summary is None else summary["state"]
    if state not in FINISHED:
        raise ValueError(
            f"{run.root} is {state}: finish it with its own command, or leave out --extend"
        )
    return run


def check_extends(run: Run, identity: Mapping[str, Any]) -> None:
    """Refuse to extend a run by images that are explained otherwise. Raises ValueError."""
    stored, wanted = (
        {key: value for key, value in one.items() if key not in OF_THE_IMAGES}
        for one in (run.description["fingerprint_of"], identity)
    )
    lines = differences(stored, wanted)
    if lines:
        raise ValueError("\n".join([f"{run.root} has other settings:", *lines]))


def _known(run: Run) -> pa.Array:
    """The image_ids that a finished run has."""
    ids = [run.read_part(index, ["image_id"]).column(0) for index in sorted(run.committed())]
    chunks = [chunk for column in ids for chunk in column.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())
