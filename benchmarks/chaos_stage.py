"""What the chaos happens to: an S3 server behind its faulty front door, a Ray cluster, drivers."""

import io
import json
import multiprocessing
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from benchmarks.faulty_store import FaultyStore
from benchmarks.weed import BUCKET, Weed, free_ports
from storage.locations import Location, StorageUnavailable

IMAGES = 300
BATCH_SIZE = 8
MODEL = "vit_tiny_patch16_224"
MODEL_ARGUMENTS = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
WORKER_NODES = 1
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
# Ray ends processes that are idle for a second where a node has few cores, and a loading process
# takes seconds of a core to start anew.
SYSTEM = {"idle_worker_killing_time_threshold_ms": 600_000, "worker_niceness": 0}
# Drivers are forked from a process that has imported what they need: of a round it is the half.
PRELOADED = ["jobs.cli", "jobs.explain", "s3fs"]


@dataclass
class Stage:
    """All that a run needs, in `folder`; `address` is the cluster's, which may be a new one."""

    folder: Path
    seed: int
    server: Weed = field(init=False)
    store: FaultyStore = field(init=False)
    cluster: Any = None

    def __enter__(self) -> Self:
        self.server = Weed(self.folder)
        self.server.start()
        self.store = FaultyStore(self.server.endpoint, self.seed).__enter__()
        options = self.server.options()
        options["client_kwargs"] = {"endpoint_url": self.store.endpoint}
        self.storage.write_text(json.dumps(options))
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(PRELOADED)
        self._draw_images()
        self.start_cluster()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_cluster()
        self.store.__exit__()
        self.server.kill()

    @property
    def storage(self) -> Path:
        """The file with the options of the store's front door."""
        return self.folder / "storage.json"

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def place(self, name: str) -> Location:
        """A place on the server, past the faults."""
        return Location(f"s3://{BUCKET}/{name}", self.server.options())

    def parts(self, run: str) -> int:
        """How many shards of a run are committed; 0 while the server is away."""
        with suppress(StorageUnavailable, OSError):
            return len(self.place(run).child("explanations").names())
        return 0

    def drive(self, run: str, log: Path, replicas: int) -> ForkServerProcess:
        """Start `saliency explain` for a run, the same command each time."""
        arguments = [
            "explain", "--images", f"s3://{BUCKET}/images", "--out", f"s3://{BUCKET}/{run}",
            "--input-storage", str(self.storage), "--output-storage", str(self.storage),
            "--model", MODEL, "--checkpoint", "random:0",
            "--model-args", json.dumps(MODEL_ARGUMENTS), "--address", self.address,
            "--replicas", str(replicas), "--batch-size", str(BATCH_SIZE),
        ]  # fmt: skip
        driver = self._processes.Process(target=_drive, args=(arguments, str(log)))
        driver.start()
        return driver

    def start_cluster(self) -> None:
        """A head and worker nodes, all on this machine."""
        from ray.cluster_utils import Cluster

        (port,) = free_ports(1)
        head = {**NODE, "include_dashboard": False, "dashboard_port": port}
        head["_system_config"] = SYSTEM
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(WORKER_NODES):
            self.cluster.add_node(**NODE)

    def end_cluster(self) -> None:
        """Lose every node at once, the head among them."""
        for node in [*self.cluster.worker_nodes, self.cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self.cluster.worker_nodes.clear()
        self.cluster.head_node = None

    def lose_node(self, number: int) -> None:
        """Lose a worker node, and get another."""
        nodes = sorted(self.cluster.worker_nodes, key=lambda node: str(node.unique_id))
        self.cluster.remove_node(nodes[number % len(nodes)], allow_graceful=False)
        self.cluster.add_node(**NODE)

    def processes(self, *titles: str) -> list[int]:
        """Processes of the cluster that say they are one of these."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                title = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title.startswith(titles) and self.address in _parent(path.parent):
                    found.append(int(path.parent.name))
        return sorted(found)

    def _draw_images(self) -> None:
        random = np.random.default_rng(0)
        folder = self.place("images")
        for number in range(IMAGES):
            coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((80 + number % 60, 60 + number % 60))
            data = io.BytesIO()
            picture.save(data, "JPEG")
            folder.child(("ant", "bee", "cat")[number % 3], f"{number:03d}.jpg").create(
                data.getvalue()
            )


def _parent(process: Path) -> str:
    """The command line of the process that started this one."""
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return Path(f"/proc/{parent}/cmdline").read_text()


def _drive(arguments: list[str], log: str) -> None:
    """What `python -m jobs.cli` does, in a process of its own."""
    from jobs import cli

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [cli.__file__, *arguments]
    cli.main()
