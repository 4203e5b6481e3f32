"""The same rows as `saliency explain`, made by a Ray Data pipeline; and how fast it can be made.

    python benchmarks/ray_data_pipeline.py FOLDER OUT [--model NAME] [--images N] [--tuning JSON]
    python benchmarks/ray_data_pipeline.py FOLDER OUT --tune [--images N]

read_binary_files -> map_batches(decode) -> map_batches(explain, pool of actors) -> write_parquet,
as Ray Data's guide to batch inference has it. --tune starts from the defaults of that guide and
changes one thing at a time, after Ray Data's page of performance tips; a change that makes the
pipeline faster stays. Time counts from the moment when the actors have their first batch (the mean
of theirs) to the last file. Nothing is read before all have their model (`wait_for_min_actors_s`),
and the processes that decode have loaded their packages before. What the rows need (decoding,
explaining, the schema) is this repository's.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources
from rich.console import Console

from benchmarks.ray_data_rows import Explain, load
from explainer import load_model
from storage.manifests import IMAGE_EXTENSIONS

BATCH = 32
WARM_UP_IMAGES = 64
START_SECONDS, STALL_SECONDS = 600, 300
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Tuning:
    """What Ray Data leaves to its user; None is what its guide leaves to Ray Data.

    `threads`: torch's in an actor; Ray's own is one a CPU asked for. `actor_cpus`, `read_cpus`,
    `write_cpus`: what an actor and a task ask for. `decode_in_read`: decoding is fused with reading
    files into tasks that run beside the actors; else Ray Data fuses it with explaining, in the
    actors. `read_ahead`: limit of the object store in MiB.
    """

    actors: int = 1
    threads: int | None = None
    actor_cpus: float | None = None
    read_cpus: float | None = None
    write_cpus: float | None = None
    decode_in_read: bool = False
    batch: int = BATCH
    images_of_block: int | None = None
    in_flight: int | None = None
    concurrent_calls: int | None = None
    rows_of_file: int | None = None
    read_ahead: int | None = None


@dataclass(frozen=True)
class Step:
    """One thing that the documentation advises to try."""

    title: str
    changes: dict[str, Any]


def steps(cores: int) -> list[Step]:
    """What is tried, in this order, on a machine of `cores`."""
    one_a_core = {"actors": cores, "threads": 1, "read_cpus": 0.25, "write_cpus": 0.25}
    return [
        Step("torch on all cores in the actor", {"threads": cores}),
        Step("decode in the tasks that read", {"decode_in_read": True, "read_cpus": 0.5}),
        Step(
            "an actor a core, one thread each, it decodes",
            one_a_core | {"actor_cpus": 0.75, "decode_in_read": False},
        ),
        Step(
            "an actor a core, one thread each, tasks decode",
            one_a_core | {"actor_cpus": 0.5, "read_cpus": 0.4, "decode_in_read": True},
        ),
        Step("blocks of 2 batches", {"images_of_block": 2 * BATCH}),
        Step("blocks of 4 batches", {"images_of_block": 4 * BATCH}),
        Step("2 tasks in flight an actor", {"in_flight": 2}),
        Step("4 tasks in flight an actor", {"in_flight": 4}),
        Step("2 concurrent calls an actor", {"in_flight": 4, "concurrent_calls": 2}),
        Step("128 rows and more a file", {"rows_of_file": 4 * BATCH}),
        Step("half the batch", {"batch": BATCH // 2}),
        Step("twice the batch", {"batch": 2 * BATCH}),
        Step("reading ahead by at most 64 MiB", {"read_ahead": 64}),
    ]


@dataclass(frozen=True)
class Timed:
    """A pass; moments are seconds since the epoch: actors have a first batch, and the last file."""

    images: int
    ready: float
    finished: float

    @property
    def rate(self) -> float:
        """Images a second from ready to the last file."""
        return self.images / (self.finished - self.ready)


def pipeline(files: list[str], folder: Path, model: str, tuning: Tuning, ready: Path) -> Dataset:
    """The data set of rows of `files`, which lie below `folder`; lazy, as Ray Data's are."""
    rows = {os.path.relpath(path, folder): i for i, path in enumerate(files)}
    blocks = tuning.images_of_block and -(-len(files) // tuning.images_of_block)
    found = ray.data.read_binary_files(
        files,
        include_paths=True,
        override_num_blocks=blocks,
        num_cpus=tuning.read_cpus,
    )
    decoded = found.map_batches(
        load,
        batch_size=None if tuning.decode_in_read else tuning.batch,
        batch_format="pyarrow",
        num_cpus=tuning.read_cpus if tuning.decode_in_read else tuning.actor_cpus,
        fn_kwargs={
            "preprocessing": load_model(model, seed=0).preprocessing,
            "folder": str(folder),
            "rows": rows,
        },
    )
    pool = ActorPoolStrategy(
        size=tuning.actors,
        max_tasks_in_flight_per_actor=tuning.in_flight,
        max_concurrent_calls_per_actor=tuning.concurrent_calls,
    )
    return decoded.map_batches(
        Explain,
        fn_constructor_args=(model, tuning.threads, str(ready)),
        batch_size=tuning.batch,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=tuning.actor_cpus,
    )


def run(files: list[str], folder: Path, out_folder: Path, model: str, tuning: Tuning) -> Timed:
    """Explain `files` into Parquet files below `out_folder`, which is emptied first."""
    shutil.rmtree(out_folder, ignore_errors=True)
    ready, written = out_folder / "ready", out_folder / "rows"
    ready.mkdir(parents=True)
    _context(tuning)
    _load_packages()
    pipeline(files, folder, model, tuning, ready).write_parquet(
        str(written),
        compression="zstd",
        min_rows_per_file=tuning.rows_of_file,
        ray_remote_args=None if tuning.write_cpus is None else {"num_cpus": tuning.write_cpus},
    )
    times = sorted(path.stat().st_mtime for path in written.glob("*.parquet"))
    fed = statistics.mean(float(path.read_text()) for path in ready.iterdir())
    return Timed(len(files), fed, times[-1])


def _load_packages() -> None:
    """Have as many of Ray's processes as it keeps between tasks import what decoding needs."""

    @ray.remote(num_cpus=1)
    def wait_for_the_others() -> None:
        time.sleep(0.5)
        load_model  # noqa: B018 - named here, it is imported with this function

    ray.get([wait_for_the_others.remote() for _ in range(os.cpu_count() or 1)])


def _context(tuning: Tuning) -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = START_SECONDS
    context.execution_no_progress_timeout_s = STALL_SECONDS
    if tuning.read_ahead is None:
        context.execution_options.resource_limits = ExecutionResources.for_limits()
    else:
        memory = tuning.read_ahead * 2**20
        limits = ExecutionResources.for_limits(object_store_memory=memory)
        context.execution_options.resource_limits = limits


def start_ray() -> None:
    """A cluster on this machine, whose processes import what this one does."""
    os.environ["PYTHONPATH"] = sys.path[0]
    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def images_below(folder: Path, most: int | None) -> list[str]:
    """The first images of a folder by path, as `saliency explain` orders them."""
    found = [path for path in folder.rglob("*") if path.name.lower().endswith(IMAGE_EXTENSIONS)]
    return sorted(str(path) for path in found)[:most]


def tune(files: list[str], folder: Path, out_folder: Path, model: str) -> Tuning:
    """Try one change after the other, tell each rate, and return the best tuning."""
    best = Tuning()
    fastest = run(files, folder, out_folder, model, best).rate
    out.print(f"{'step':<42} {'images/s':>8} {'x before':>8}")
    out.print(f"{'as in the guide':<42} {fastest:>8.2f}")
    for step in steps(os.cpu_count() or 1):
        trial = replace(best, **step.changes)
        rate = run(files, folder, out_folder, model, trial).rate
        kept = "kept" if rate > fastest else ""
        out.print(f"{step.title:<42} {rate:>8.2f} {rate / fastest:>8.2f} {kept}")
        if rate > fastest:
            best, fastest = trial, rate
    return best


def main() -> None:
    """Run or tune the pipeline; --result gets the outcome as JSON."""
    parser = argparse.ArgumentParser(description="The rival: the same rows by Ray Data.")
    parser.add_argument("folder", type=Path, help="images, one sub-folder a class")
    parser.add_argument("out", type=Path, help="where the rows go; emptied first")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--tuning", default="{}", help="JSON object of what differs from Tuning()")
    parser.add_argument("--tune", action="store_true", help="find the best tuning")
    parser.add_argument("--result", type=Path, help="file for the outcome")
    options = parser.parse_args()
    folder, model = options.folder.absolute(), options.model
    files = images_below(folder, options.images)
    start_ray()
    given = Tuning(**json.loads(options.tuning))
    run(files[:WARM_UP_IMAGES], folder, options.out, model, given)
    if options.tune:
        result = asdict(tune(files, folder, options.out, model))
        out.print(f"best: {json.dumps(result)}")
    else:
        timed = run(files, folder, options.out, model, given)
        result = asdict(timed)
        out.print(f"{timed.rate:.2f} images/s after start-up")
    ray.shutdown()
    if options.result is not None:
        options.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
