"""Images a second: the job, a bare loop and a Ray Data pipeline over the same photographs.

    python benchmarks/throughput.py [FOLDER] [--images N] [--repeats N] [--replicas N]
                                    [--model NAME] [--tuning JSON | --tuning-images N] [--check]

Photographs of FOLDER (SALIENCY_PHOTOS), copied as often as N (2,560) distinct files need. In every
round each of the three explains all of them in a process of its own, on a CPU, by batches of 32:

    bare loop   one process: read 32 files, decode one after the other, explain, on all cores
    job         `saliency explain` with N replicas (1)
    Ray Data    ray_data_pipeline.py, with the best of its tunings on the first images

Start-up is told apart, for all three alike: time counts from the moment when the model has its
first batch of crops (with several replicas or actors, when the average one has; the job's own
summary.json tells) to the last part or file (the bare loop: the last map, which it keeps in
memory). Ratios are those of one round, and their medians over the rounds. At the end the three are
compared row by row. The files come from memory, not from a disk: they have just been written.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks.machine import describe
from benchmarks.throughput_rows import compare

HERE = Path(__file__).resolve().parent
LEAST = {"bare loop": 0.85, "Ray Data": 1.0}
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Pass:
    """One pass over the images, in seconds: start-up, until the last row, and until the end."""

    images: int
    start: float
    work: float
    end: float
    note: str

    @property
    def rate(self) -> float:
        """Images a second without start-up."""
        return self.images / self.work


def main() -> None:
    """Measure, print the tables, and with --check hold the ratios to their limits."""
    options = _options()
    out.print(describe("ray", "torch", "timm", "pyarrow"))
    with TemporaryDirectory(prefix="saliency-throughput-") as name:
        folder = Path(name)
        images = folder / "images"
        copies(options.photos, images, options.images)
        out.print(f"{options.images} images, {options.model}, random weights, batch 32\n")
        tuning = options.tuning or _tune(folder, options)
        systems: dict[str, Callable[[], Pass]] = {
            "bare loop": lambda: _bare(folder, options),
            "job": lambda: _job(folder, options),
            "Ray Data": lambda: _ray_data(folder, tuning, options),
        }
        rounds = [_round(systems, each) for each in range(options.repeats)]
        ratios = _ratios(rounds)
        same = _compared(folder)
    if options.check:
        slow = [name for name, least in LEAST.items() if ratios[name] < least]
        for each in slow:
            out.print(f"job / {each} is {ratios[each]:.2f}; at least {LEAST[each]} is wanted")
        sys.exit(1 if slow or not same else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The job against a bare loop and Ray Data.")
    photos = os.environ.get("SALIENCY_PHOTOS")
    parser.add_argument("photos", type=Path, nargs="?", default=photos, help="or SALIENCY_PHOTOS")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--tuning", help="of Ray Data, as JSON; default: find it")
    parser.add_argument("--tuning-images", type=int, default=640)
    parser.add_argument("--check", action="store_true", help=f"exit 1 below {LEAST}")
    options = parser.parse_args()
    if options.photos is None:
        parser.error("name a folder of photographs, or set SALIENCY_PHOTOS")
    return options


def copies(photos: Path, images: Path, count: int) -> None:
    """Copy photographs into `images` until there are `count`, in their sub-folders."""
    found = sorted(path for path in photos.rglob("*") if path.is_file())
    random.Random(0).shuffle(found)
    for i in range(count):
        photo = found[i % len(found)]
        copy = images / photo.parent.relative_to(photos) / f"{photo.stem}-{i:05d}{photo.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, copy)


def _run(*arguments: str) -> tuple[float, float]:
    """Run Python with `arguments`; the moments of start and end. Raises where it fails."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return started, time.time()


def _tune(folder: Path, options: argparse.Namespace) -> str:
    """Let the pipeline find its best tuning, in sight, and return it as JSON."""
    result = folder / "tuning.json"
    subprocess.run(
        [
            *(sys.executable, str(HERE / "ray_data_pipeline.py")),
            *(str(folder / "images"), str(folder / "Ray Data"), "--tune"),
            *("--images", str(min(options.images, options.tuning_images))),
            *("--model", options.model, "--result", str(result)),
        ],
        check=True,
    )
    out.print()
    return result.read_text()


def _round(systems: dict[str, Callable[[], Pass]], number: int) -> dict[str, Pass]:
    """One pass of each, one after the other, told as they end."""
    if number == 0:
        out.print(f"{'round':>5} {'':<9} {'start-up s':>10} {'work s':>8} {'images/s':>8} after s")
    passes = {}
    for name, system in systems.items():
        done = passes[name] = system()
        out.print(
            f"{number + 1:>5} {name:<9} {done.start:>10.1f} {done.work:>8.1f} {done.rate:>8.2f} "
            f"{done.end:>7.1f}  {done.note}"
        )
    return passes


def _bare(folder: Path, options: argparse.Namespace) -> Pass:
    result = folder / "bare.json"
    started, ended = _run(
        str(HERE / "throughput_bare.py"),
        *(str(folder / "images"), str(folder / "bare loop.parquet"), options.model, str(result)),
    )
    found = json.loads(result.read_text())
    stages = ", ".join(f"{name} {found[name]:.1f}" for name in ("fetch", "decode", "explain"))
    ready, finished = found["ready"], found["finished"]
    return Pass(options.images, ready - started, finished - ready, ended - finished, stages)


def _job(folder: Path, options: argparse.Namespace) -> Pass:
    run = folder / "job"
    shutil.rmtree(run, ignore_errors=True)
    started, ended = _run(
        *("-m", "jobs.cli", "explain", "--images", str(folder / "images"), "--out", str(run)),
        *("--model", options.model, "--checkpoint", "random:0", "--device", "cpu"),
        *("--replicas", str(options.replicas)),
    )
    seconds = json.loads((run / "summary.json").read_text())["last_attempt"]["seconds"]
    work = seconds["run"] - seconds["start"]
    end = ended - max(part.stat().st_mtime for part in run.glob("explanations/*.parquet"))
    names = ("fetch", "decode", "wait", "compute", "write")
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in names)
    return Pass(options.images, ended - started - work - end, work, end, stages)


def _ray_data(folder: Path, tuning: str, options: argparse.Namespace) -> Pass:
    result = folder / "ray_data.json"
    started, ended = _run(
        str(HERE / "ray_data_pipeline.py"),
        *(str(folder / "images"), str(folder / "Ray Data"), "--tuning", tuning),
        *("--model", options.model, "--result", str(result)),
    )
    found = json.loads(result.read_text())
    ready, finished = found["ready"], found["finished"]
    return Pass(options.images, ready - started, finished - ready, ended - finished, "")


def _ratios(rounds: list[dict[str, Pass]]) -> dict[str, float]:
    """Print how the job compares; returns the medians."""
    ratios = {}
    for name, least in LEAST.items():
        found = [each["job"].rate / each[name].rate for each in rounds]
        ratios[name] = statistics.median(found)
        all_of_them = ", ".join(f"{ratio:.2f}" for ratio in found)
        out.print(f"job / {name}: {ratios[name]:.2f} ({all_of_them}); wanted {least}")
    return ratios


def _compared(folder: Path) -> bool:
    """Whether the bare loop and Ray Data say what the job says, row by row."""
    job = folder / "job" / "explanations"
    others = {"bare loop": folder / "bare loop.parquet", "Ray Data": folder / "Ray Data" / "rows"}
    differences = {name: compare(job, path) for name, path in others.items()}
    for name, found in differences.items():
        out.print(f"job and {name}: {found.told}")
    return all(found.same for found in differences.values())


if __name__ == "__main__":
    main()
