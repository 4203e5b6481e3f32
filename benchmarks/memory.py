"""Whether memory stays flat over a run: driver, replicas, loading workers and object store.

    python benchmarks/memory.py [--images N] [--replicas N] [--check]

`saliency explain` over N small JPEGs (20,000), which the benchmark draws, with a tiny vision
transformer of random weights. Each time 1,000 more images are committed it samples, in MiB:

    driver     private memory (RssAnon) of this process, which is the job's driver
    replica    that of the largest of the replicas (2)
    loader     that of the largest of Ray's other workers, in which files are fetched and decoded
    store      bytes of objects in Ray's object store
    ray        private memory of Ray's own processes together; not held to a limit, it is not ours

Pages of the object store that a process has mapped are not its own: they are in `store`. Growth is
the median of the last quarter of the samples less that of the second; the slope is fitted from the
second quarter on. --check fails where growth exceeds 5% and 16 MiB.
"""

import argparse
import io
import json
import os
import statistics
import sys
import threading
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.machine import describe
from jobs.cli import run, set_ray_environment
from jobs.config import ExecutionConfig, ExplainConfig, InputConfig, ModelConfig
from jobs.plan import shard_size

EVERY = 1000
POLL_SECONDS = 0.2
MOST_GROWTH, MOST_MEGABYTES = 0.05, 16.0
MEGABYTE = 2**20
CLASSES = 10
MODEL, SMALL = "test_vit", {"depth": 2, "num_classes": CLASSES}
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Sample:
    """Memory in MiB when so many images were committed."""

    images: int
    driver: float
    replica: float
    loader: float
    store: float
    ray: float


def main() -> None:
    """Run the job beside a sampler, print the samples, and with --check hold their growth."""
    options = _options()
    set_ray_environment(None)  # before Ray is imported
    out.print(describe("ray", "torch", "pyarrow"))
    with TemporaryDirectory(prefix="saliency-memory-") as name:
        images, run_folder = Path(name, "images"), Path(name, "run")
        draw(images, options.images)
        sampler = Sampler(run_folder / "explanations", options.images)
        sampler.start()
        code = run(
            ExplainConfig(
                model=ModelConfig(MODEL, "random:0", model_args=json.dumps(SMALL)),
                out=str(run_folder),
                input=InputConfig(images=str(images)),
                execution=ExecutionConfig(device="cpu", replicas=options.replicas),
            )
        )
        sampler.stop()
    if code:
        sys.exit(code)
    grown = _report(sampler.samples)
    sys.exit(1 if options.check and grown else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Whether the memory of a run stays flat.")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="exit 1 where anything grows")
    options = parser.parse_args()
    if options.images < 8 * EVERY:
        parser.error(f"--images must be {8 * EVERY} at least, for samples before and after")
    return options


def draw(folder: Path, count: int) -> None:
    """Write `count` JPEGs of noise in sub-folders, none like another."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class-{i % CLASSES}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((64, 64)).save(file, "JPEG", quality=85)
        path.write_bytes(file.getvalue())


class Sampler(threading.Thread):
    """Takes a sample whenever 1,000 more images are committed, until it is stopped."""

    def __init__(self, parts: Path, images: int) -> None:
        super().__init__(daemon=True)
        self.parts, self.images = parts, images
        self.rows_of_part = shard_size(images, 1)
        self.samples: list[Sample] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        """Poll the folder of parts; rows count as committed when their part is there."""
        due = EVERY
        while not self._stopped.wait(POLL_SECONDS):
            parts = len(list(self.parts.glob("part-*.parquet")))
            committed = min(parts * self.rows_of_part, self.images)
            if committed >= due:
                self.samples.append(sample(committed))
                due = committed - committed % EVERY + EVERY

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()


def sample(images: int) -> Sample:
    """The memory of this process and of all below it."""
    names = {pid: _name(pid) for pid in _below(os.getpid())}
    private = {pid: _private(pid) for pid in names}
    replicas = [pid for pid, name in names.items() if name.startswith("ray::Replica")]
    workers = [
        pid for pid, name in names.items() if name.startswith(("ray::load_batch", "ray::IDLE"))
    ]
    rest = set(names) - set(replicas) - set(workers)
    return Sample(
        images,
        driver=_private(os.getpid()),
        replica=max((private[pid] for pid in replicas), default=0.0),
        loader=max((private[pid] for pid in workers), default=0.0),
        store=_object_store(),
        ray=sum(private[pid] for pid in rest),
    )


def _object_store() -> float:
    import ray
    from ray._private.internal_api import node_stats  # Ray's public calls tell the capacity only

    (node,) = ray.nodes()
    found = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    used: int = found.store_stats.object_store_bytes_used
    return used / MEGABYTE


def _below(pid: int) -> list[int]:
    """The processes that descend from `pid`; Linux only, as Ray's names are."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _private(pid: int) -> float:
    """MiB of memory that no other process shares."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
    return sum(kilobytes) / 1024


def _report(samples: list[Sample]) -> list[str]:
    """Print samples, growth and slopes; returns what grew beyond the limit."""
    names = [each.name for each in fields(Sample)]
    out.print("".join(f"{name:>9}" for name in names))
    for each in samples:
        out.print("".join(f"{value:>9.0f}" for value in astuple(each)))
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = []
    for name in names[1:]:
        before = statistics.median(getattr(each, name) for each in second)
        after = statistics.median(getattr(each, name) for each in last)
        later = samples[quarter:]
        slope = np.polyfit(
            [each.images for each in later], [getattr(each, name) for each in later], 1
        )[0]
        limit = before * MOST_GROWTH + MOST_MEGABYTES
        over = name != "ray" and after - before > limit
        grown += [name] if over else []
        out.print(
            f"{name:<8} {before:7.0f} -> {after:7.0f} MiB, {slope * EVERY:+.2f} MiB for 1,000 "
            f"images{' GROWS' if over else ''}"
        )
    return grown


if __name__ == "__main__":
    main()
