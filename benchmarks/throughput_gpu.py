"""Images a second end to end on a GPU, and how much of the time the GPU computed.

    python benchmarks/throughput_gpu.py [FOLDER] [--images N] [--model NAME] [--precision P]
                                        [--batch-size N] [--repeats N]

Photographs of FOLDER (SALIENCY_PHOTOS), copied as often as N distinct files need, are explained by
`saliency explain` with one replica on one GPU and all CPUs decoding. Beside it, the GPU alone: the
same model, method and batch over crops that lie in its memory. `computed` is the share of the job's
work (from the first batch to the last part) in which the replica waited for its GPU, `busy` the
share of moments, as nvidia-smi samples them, in which a kernel ran.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console

from benchmarks.machine import describe
from benchmarks.throughput import copies
from explainer import explain, load_model

HERE = Path(__file__).resolve().parent
SAMPLE_MS = 100
STAGES = ("fetch", "decode", "wait", "compute", "write")
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Pass:
    """One run of the job: seconds of its work, of each stage, and the GPU's use in percent."""

    work: float
    seconds: dict[str, float]
    limited_by: str
    busy: float


def main() -> None:
    """Measure and print the table."""
    options = _options()
    out.print(describe("ray", "torch", "timm", device="cuda"))
    out.print(f"{options.images} images, {options.model}, {options.precision}, random weights\n")
    alone = _alone(options)
    out.print(f"the GPU alone, batch {options.batch_size}: {alone:.0f} images/s\n")
    out.print(
        f"{'work s':>8} {'images/s':>8} {'of alone':>8} {'computed':>8} {'busy':>5}  stages, s"
    )
    with TemporaryDirectory(prefix="saliency-gpu-") as name:
        images = Path(name) / "images"
        copies(options.photos, images, options.images)
        for _ in range(options.repeats):
            _tell(_job(images, Path(name) / "run", options), alone, options.images)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images a second end to end on a GPU.")
    photos = os.environ.get("SALIENCY_PHOTOS")
    parser.add_argument("photos", type=Path, nargs="?", default=photos, help="or SALIENCY_PHOTOS")
    parser.add_argument("--images", type=int, default=25_600)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--precision", default="mixed", choices=("float32", "mixed"))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    if options.photos is None:
        parser.error("name a folder of photographs, or set SALIENCY_PHOTOS")
    return options


def _alone(options: argparse.Namespace) -> float:
    """Images a second of `explain` over crops that are on the GPU."""
    model = load_model(options.model, seed=0)
    model.vit.to("cuda")
    shape = (options.batch_size, 3, *model.preprocessing.input_size)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        explain(model, crops, precision=options.precision)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    torch.cuda.empty_cache()
    return options.batch_size / statistics.median(times[2:])


def _job(images: Path, run: Path, options: argparse.Namespace) -> Pass:
    shutil.rmtree(run, ignore_errors=True)
    watch = subprocess.Popen(
        [
            *("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"),
            *("-lms", str(SAMPLE_MS)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        subprocess.run(
            [
                *(sys.executable, "-m", "jobs.cli", "explain", "--images", str(images)),
                *("--out", str(run), "--model", options.model, "--checkpoint", "random:0"),
                *("--device", "cuda", "--precision", options.precision),
                *("--batch-size", str(options.batch_size)),
            ],
            check=True,
            cwd=HERE.parent,
            stdout=subprocess.DEVNULL,
        )
    finally:
        watch.terminate()
    samples = [int(line) for line in watch.communicate()[0].split()]
    attempt = json.loads((run / "summary.json").read_text())["last_attempt"]
    seconds = attempt["seconds"]
    work = seconds["run"] - seconds["start"]
    of_work = samples[-round(1000 * (work + seconds["aggregate"]) / SAMPLE_MS) :]
    return Pass(work, seconds, attempt["limited_by"], statistics.mean(of_work))


def _tell(done: Pass, alone: float, images: int) -> None:
    rate = images / done.work
    stages = ", ".join(f"{name} {done.seconds[name]:.1f}" for name in STAGES)
    out.print(
        f"{done.work:>8.1f} {rate:>8.0f} {rate / alone:>8.2f} "
        f"{done.seconds['compute'] / done.work:>8.2f} {done.busy / 100:>5.2f}  {stages}; "
        f"{done.limited_by}"
    )


if __name__ == "__main__":
    main()
