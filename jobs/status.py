"""`saliency status`: how far a run is, from its directory alone; needs neither torch nor Ray."""

import time
from collections.abc import Callable

import pyarrow.parquet as pq
from rich.console import Console

from jobs import status_told
from jobs.commands import StatusConfig
from jobs.config import ConfigurationError, Exit
from jobs.images import input_of, selects_everything, stored_manifest
from jobs.look import Status, look
from jobs.options import read_options
from jobs.plan import Shard, planned
from storage.columns import IN_PARQUET, IN_TAR
from storage.manifests import ManifestError
from storage.runs import NotARun, Run, open_run
from storage.trust import named

WATCH_SECONDS = 10.0


def status(config: StatusConfig, console: Console) -> Exit:
    """Tell how far a run is; with `watch`, again and again until no driver is at work on it.

    Raises ConfigurationError where RUN is no run, StorageUnavailable where its store fails.
    """
    try:
        run = open_run(named(config.run, read_options(config.output_storage)))
        shards = planned_shards(run)
    except (ManifestError, OSError, ValueError, ImportError) as error:
        raise ConfigurationError([f"RUN: {error}"]) from error

    def seen() -> Status:
        return look(run, shards, failures=config.failures)

    found = _watched(seen, config, console) if config.watch else seen()
    if not config.json:
        status_told.tell(console, found)
    elif not config.watch:
        status_told.tell_json(console, found, indent=2)
    return found.code


def _watched(seen: Callable[[], Status], config: StatusConfig, console: Console) -> Status:
    """What is seen last; what is seen on the way is told, as a line each."""
    found = seen()
    while True:
        if config.json:
            status_told.tell_json(console, found, indent=None)
        if found.state not in ("running", "not started"):
            return found
        if not config.json:
            status_told.tell_line(console, found)
        time.sleep(WATCH_SECONDS)
        found = seen()


def planned_shards(run: Run) -> list[Shard]:
    """The run's shards. Only where files hold its images is its manifest read: they decide then.

    Raises NotARun where run.json lacks what is needed, ManifestError.
    """
    try:
        rows, size, targets = (
            int(run.description[name]) for name in ("rows", "shard_size", "targets_per_image")
        )
        if rows < 0 or size < 1:
            raise ValueError(f"{rows} rows in shards of {size}")
    except (KeyError, TypeError, ValueError) as error:
        raise NotARun(f"{run.root}: run.json lacks rows, ... ({error}): was it edited?") from error
    groups = stored_manifest(run, {}).groups if _is_grouped(run) else ()
    return planned(rows, groups, size, targets)


def _is_grouped(run: Run) -> bool:
    """Whether its shards follow the files that hold its images."""
    if not selects_everything(input_of(run)) or run.manifest.name not in run.root.names():
        return False

    def columns() -> list[str]:
        with run.manifest.open() as file:
            return list(pq.read_schema(file).names)

    return bool({IN_TAR[0], IN_PARQUET[0]} & set(run.manifest.attempt(columns)))
