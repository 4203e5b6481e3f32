"""A run on a cluster that changes: it begins on one node, three join, two are killed.

    python benchmarks/elastic.py [--seconds 4] [--check]

Real Ray nodes on this machine, with logical GPUs: a first one with two GPUs, one without any that
has the only CPUs to load on, then three with a GPU each. Replicas compute on the CPU and take at
least S seconds a shard. How many there are is left to the run's defaults. Two nodes with a GPU are
killed once their replicas are at work. Printed: when what happened, which GPU each replica had,
which nodes loaded, and whether every row is there once, as an undisturbed run has it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from benchmarks.machine import describe
from jobs.cli import set_ray_environment
from jobs.config import ExecutionConfig, ExplainConfig, InputConfig, ModelConfig

IMAGES, CLASSES, PATIENCE = 960, 4, 300.0
MODEL = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": CLASSES}
out = Console(soft_wrap=True, highlight=False)


@dataclass
class Changes:
    """What is done to the cluster while a driver runs, and when, in seconds from the start.

    Ray adds nodes in a main thread alone, so the driver is another process, which logs to `log`.
    """

    cluster: Any
    run: Path
    log: Path
    events: list[tuple[float, str]] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """The nodes that are there from the first."""
        self._add("node 1", num_gpus=2, num_cpus=0)
        self._add("node C", num_gpus=0, num_cpus=2)
        self.note("1 node with 2 GPUs, 1 with CPUs alone")

    def make(self) -> None:
        """All of them, each when the run is as far as it asks for."""
        self._when(lambda: len(self._parts()) >= 2, "2 parts are written")
        joined = [self._add(f"node {n}", num_gpus=1, num_cpus=0) for n in (2, 3, 4)]
        self.note("3 nodes joined")
        self._when(lambda: "5 of 5 replicas" in self.log.read_text(), "5 replicas at work")
        for node in joined[:2]:
            self.cluster.remove_node(node, allow_graceful=False)
        self.note("2 nodes killed")
        self._when(lambda: "3 of 5 replicas" in self.log.read_text(), "3 replicas at work")

    def note(self, what: str) -> None:
        """Something happened now."""
        at = time.monotonic() - self.started
        self.events.append((at, f"{what}; {len(self._parts())} parts"))

    def _add(self, name: str, **has: float) -> Any:  # noqa: ANN401 - Ray's own
        node = self.cluster.add_node(object_store_memory=100 * 2**20, **has)
        self.nodes[node.node_id] = name
        return node

    def _parts(self) -> list[Path]:
        return list(self.run.glob("explanations/*.parquet"))

    def _when(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"not in {PATIENCE:g} s: {what}")
            time.sleep(0.05)
        self.note(what)


def main() -> None:
    """Run on the changing cluster, print what happened; with --check fail where that is wrong."""
    parser = argparse.ArgumentParser(description="A run on a cluster that changes.")
    parser.add_argument("--seconds", type=float, default=4.0, help="a shard takes at least")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--drive", nargs=2, help="be the driver: address and folder")
    options = parser.parse_args()
    set_ray_environment(None)  # before Ray is imported
    if options.drive:
        sys.exit(_drive(*options.drive))
    out.print(describe("ray", "torch"))
    with TemporaryDirectory(prefix="saliency-elastic-") as folder:
        problems = _run(options.seconds, Path(folder))
    for problem in problems:
        out.print(problem)
    if options.check and problems:
        sys.exit(1)


def _drive(address: str, folder: str) -> int:
    """The driver's process: two runs of the same images, the second one undisturbed."""
    from benchmarks.elastic_replica import SECONDS, SlowReplica
    from jobs.explain import explain

    config = _config(Path(folder), address)
    code = explain(config, Console(width=200), SlowReplica)
    if code == 0:
        os.environ[SECONDS] = "0"
        code = explain(replace(config, out=f"{folder}/calm"), Console(quiet=True), SlowReplica)
    return int(code)


def _run(seconds: float, folder: Path) -> list[str]:
    from benchmarks.elastic_replica import NOTES, SECONDS
    from benchmarks.nodes import cluster_of

    notes, log = folder / "notes", folder / "log"
    notes.mkdir()
    os.environ |= {NOTES: str(notes), SECONDS: repr(seconds), "PYTHONPATH": sys.path[0]}
    _write_images(folder / "images")
    with cluster_of(0) as cluster, log.open("w") as output:
        changes = Changes(cluster, folder / "run", log)
        changes.begin()
        arguments = [__file__, "--drive", cluster.address, str(folder)]
        driver = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output)
        try:
            changes.make()
            code = driver.wait(timeout=PATIENCE)
        finally:
            driver.kill()
        changes.note(f"exit code {code}")
    return _tell(changes, folder, {path.name for path in notes.iterdir()}, code)


def _config(folder: Path, address: str) -> ExplainConfig:
    return ExplainConfig(
        model=ModelConfig("vit_tiny_patch16_224", "random:0", model_args=json.dumps(MODEL)),
        out=str(folder / "run"),
        input=InputConfig(images=str(folder / "images")),
        execution=ExecutionConfig(address=address, batch_size=16),
    )


def _write_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        kind = folder / f"class-{number % CLASSES}"
        kind.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 70)).save(kind / f"{number:04d}.jpg")


def _tell(changes: Changes, folder: Path, loaded: set[str], code: int) -> list[str]:
    """Print what happened; returns what is not as it should be."""
    for at, what in changes.events:
        out.print(f"{at:>6.0f} s  {what}")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    had = [
        (changes.nodes.get(each["node"], "?"), *each["gpu_ids"])
        for each in summary["last_attempt"]["replicas"]
    ]
    out.print("replicas: " + ", ".join(f"{node} GPU {gpu}" for node, gpu in sorted(had)))
    out.print("loaded: " + ", ".join(sorted(changes.nodes.get(node, "?") for node in loaded)))
    lost = changes.log.read_text().count("a replica was lost: ")
    parts = {path.name: path.read_bytes() for path in (folder / "run").glob("explanations/*")}
    calm = {path.name: path.read_bytes() for path in (folder / "calm").glob("explanations/*")}
    rows = [row for path in sorted((folder / "run").glob("explanations/*"))
            for row in pq.read_table(path, columns=["row"])["row"].to_pylist()]  # fmt: skip
    same = sum(parts[name] == calm.get(name) for name in parts)
    out.print(
        f"{lost} replicas lost, {len(rows)} rows, {len(set(rows))} different; "
        f"{same} of {len(calm)} parts are an undisturbed run's, byte for byte"
    )
    held = {
        f"exit code {code}, not 0": code == 0,
        "a row is missing or twice": rows == list(range(IMAGES)),
        "parts differ from an undisturbed run's": parts == calm,
        "two replicas had the same GPU": len(set(had)) == len(had) == 5,
        "loading was not on the node with CPUs alone": [changes.nodes.get(n) for n in loaded]
        == ["node C"],
        "fewer than two replicas were lost": lost >= 2,
    }
    return [problem for problem, holds in held.items() if not holds]


if __name__ == "__main__":
    main()
