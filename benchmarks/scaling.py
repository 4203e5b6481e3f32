"""How the job scales with replicas, with a model that sleeps in place of the vision transformer.

    python benchmarks/scaling.py [--shards N] [--rows N] [--seconds S] [--replicas N,N] [--check]

Strong scaling: the same shards (64, of 4,096 rows) are explained by 1, 2, 4 and 8 replicas of a
Ray cluster on this machine. In place of fetching, decoding and explaining a replica sleeps, S
seconds a shard (1) in equal parts for each batch of 128, and takes maps of noise; everything else
is the job's own: driver, pool, Ray, the shard's rows of the manifest, the part's rows, Parquet, and
publishing. Time counts from the moment when all replicas are ready (they wait for each other, since
many that start on few cores do not start at once) to the last part. Efficiency is the time of one
replica over that of n replicas times n.

Building and writing a part costs CPU. Where n replicas need more of it than there are cores in the
time that a shard takes, cores are the limit and not the job.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.machine import describe
from jobs.cli import set_ray_environment
from jobs.config import ExecutionConfig, ExplainConfig, InputConfig, ModelConfig

MODEL = "vit_tiny_patch16_224"  # never run: it gives the size of the maps
GPU_BATCH = 128  # the job's own on a GPU, which the sleep stands for
LEAST_EFFICIENCY = 0.9
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Measured:
    """One run, in seconds: until all replicas were ready, from there to the last part, and after.

    `besides` is what a shard costs a replica beside its sleep.
    """

    replicas: int
    start: float
    work: float
    end: float
    besides: float


def main() -> None:
    """Run with each number of replicas, print the table, and with --check hold the efficiency."""
    options = _options()
    out.print(describe("ray", "torch", "pyarrow"))
    out.print(
        f"{options.shards} shards of {options.rows} rows, {options.seconds:g} s of sleep a shard\n"
    )
    with TemporaryDirectory(prefix="saliency-scaling-") as folder:
        manifest = _write_manifest(Path(folder), options.shards * options.rows)
        measured = [_run(n, manifest, Path(folder), options) for n in options.replicas]
    worst = _table(measured, options)
    if options.check and worst < LEAST_EFFICIENCY:
        out.print(f"efficiency {worst:.2f}; at least {LEAST_EFFICIENCY} is wanted")
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How the job scales with replicas.")
    parser.add_argument("--shards", type=int, default=64, help="at least 64")
    parser.add_argument("--rows", type=int, default=4096, help="of a shard, at most 4096")
    parser.add_argument("--seconds", type=float, default=1.0, help="of sleep a shard")
    parser.add_argument("--replicas", default="1,2,4,8")
    parser.add_argument("--check", action="store_true", help=f"exit 1 below {LEAST_EFFICIENCY}")
    options = parser.parse_args()
    options.replicas = [int(each) for each in options.replicas.split(",")]
    return options


def _write_manifest(folder: Path, rows: int) -> Path:
    names = [f"class-{row % 10}/image-{row:08d}.jpg" for row in range(rows)]
    labels = [name.partition("/")[0] for name in names]
    path = folder / "images.parquet"
    pq.write_table(pa.table({"uri": names, "label": labels}), path)
    return path


def _run(replicas: int, manifest: Path, folder: Path, options: argparse.Namespace) -> Measured:
    set_ray_environment(None)  # before Ray is imported
    from benchmarks.scaling_replica import CLASSES, MEETING, SECONDS, SleepingReplica
    from jobs.explain import explain

    run, meeting = folder / f"run-{replicas}", folder / str(replicas)
    meeting.mkdir()
    os.environ |= {MEETING: str(meeting), SECONDS: repr(options.seconds / options.rows)}
    os.environ["PYTHONPATH"] = sys.path[0]
    config = ExplainConfig(
        model=ModelConfig(MODEL, "random:0", model_args=json.dumps({"num_classes": CLASSES})),
        out=str(run),
        input=InputConfig(manifest=str(manifest)),
        execution=ExecutionConfig(device="cpu", replicas=replicas, batch_size=GPU_BATCH),
    )
    began = time.time()
    code = explain(config, Console(quiet=True), SleepingReplica)
    ended = time.time()
    if code != 0:
        raise RuntimeError(f"the run with {replicas} replicas ended with code {code}")
    parts = [path.stat().st_mtime for path in run.glob("explanations/*.parquet")]
    if len(parts) != options.shards:
        raise RuntimeError(f"{len(parts)} parts; {options.shards} shards of {options.rows} rows")
    ready = max(path.stat().st_mtime for path in meeting.parent.glob(f"{replicas}.*"))
    seconds = json.loads((run / "summary.json").read_text())["last_attempt"]["seconds"]
    busy = seconds["compute"] + seconds["write"]
    shutil.rmtree(run)
    return Measured(
        replicas,
        start=ready - began,
        work=max(parts) - ready,
        end=ended - max(parts),
        besides=busy / options.shards - options.seconds,
    )


def _table(measured: list[Measured], options: argparse.Namespace) -> float:
    """Print a line a run; returns the least efficiency."""
    out.print(
        f"{'replicas':>8} {'start-up s':>10} {'work s':>8} {'images/s':>9} {'efficiency':>10} "
        f"{'s a shard beside sleep':>22} {'after s':>8}"
    )
    one = measured[0].work * measured[0].replicas
    worst = 1.0
    for each in measured:
        efficiency = one / (each.work * each.replicas)
        worst = min(worst, efficiency)
        rate = options.shards * options.rows / each.work
        out.print(
            f"{each.replicas:>8} {each.start:>10.1f} {each.work:>8.2f} {rate:>9.0f} "
            f"{efficiency:>10.2f} {each.besides:>22.3f} {each.end:>8.1f}"
        )
    cores, cost = os.cpu_count() or 1, measured[0].besides
    out.print(
        f"a shard costs {cost:.2f} s beside its sleep: {cores} cores can serve "
        f"{cores * options.seconds / cost:.1f} replicas"
    )
    return worst


if __name__ == "__main__":
    main()
