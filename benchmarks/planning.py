"""What it costs to plan a run of millions of rows, to resume it half-done, and to aggregate parts.

    python benchmarks/planning.py [--rows 1000000,10000000] [--parts 100,1000] [--check]

The list is Parquet: a uri of about 60 characters and one of 1,000 labels a row. Each measurement
has a process of its own. Planning is what `saliency explain` does with the list (columns, digest,
repeated ids, labels, cutting into shards), without loading the model; a resume does it again, reads
run.json and lists the parts, of which every other one is there. Then one of eight replicas reads
the rows of its shards, every eighth. Memory is at the peak: what the process has for itself
(anonymous pages), beside it all of it, with the libraries' files.
"""

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.machine import describe
from storage import schema
from storage.locations import Location
from storage.runs import open_or_create, part_name

CHUNK = 1_000_000
CLASSES, GRID = 1000, (14, 14)
ROWS_OF_A_PART = 4096
REPLICAS = 8
DISTINCT_PARTS = 8  # the others are links to them: reading costs the same
SECONDS_LIMIT, MEMORY_LIMIT = 10.0, 2**30  # of planning 10 million rows
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Cost:
    """Seconds, and bytes at the peak: the process's own and all."""

    seconds: float
    own: int
    resident: int


def main() -> None:
    """Measure and print; with --check, exit 1 where planning misses its limits."""
    parser = argparse.ArgumentParser(description="Measure planning, resuming and aggregating.")
    parser.add_argument("--rows", default="1000000,10000000")
    parser.add_argument("--parts", default="100,1000")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    out.print(describe("pyarrow", "duckdb", "torch"))
    held = True
    with TemporaryDirectory() as folder:
        for rows in map(int, asked.rows.split(",")):
            path = Path(folder) / f"{rows}.parquet"
            write_list(path, rows)
            cost = in_process(plan, path)
            tell("plan", rows, "rows", cost)
            within = cost.seconds < SECONDS_LIMIT and cost.own < MEMORY_LIMIT
            held &= within or rows > 10_000_000
            make_half_done(Path(folder) / f"run-{rows}", rows)
            tell("resume", rows, "rows", in_process(resume, path, Path(folder) / f"run-{rows}"))
            shards = len(range(0, rows, REPLICAS * ROWS_OF_A_PART))
            cost = in_process(read_every_eighth, path, rows)
            tell(f"one of {REPLICAS} replicas reads its shards", shards, "shards", cost)
        tell("the driver with a model, before planning", 0, "", in_process(load_driver))
        for parts in map(int, asked.parts.split(",")):
            root = Path(folder) / f"parts-{parts}"
            make_parts(root, parts)
            tell("aggregate", parts, "parts", in_process(aggregate_parts, root, parts))
    sys.exit(1 if asked.check and not held else 0)


def tell(what: str, count: int, unit: str, cost: Cost) -> None:
    """One line of the table."""
    each = f"{cost.seconds / count * 1e6:9.2f} us each" if count else ""
    memory = f"{cost.own / 2**20:6.0f} MB own, {cost.resident / 2**20:6.0f} MB resident"
    out.print(f"{what:42s} {count:>11,} {unit:6s} {cost.seconds:7.2f} s {each:18s} {memory}")


def write_list(path: Path, rows: int) -> None:
    """A list as pandas or Arrow would write it, in row groups of a million."""
    writer: pq.ParquetWriter | None = None
    for start in range(0, rows, CHUNK):
        number = pa.array(np.arange(start, min(rows, start + CHUNK)))
        index = pa.array(np.asarray(number) % CLASSES).cast(pa.string())
        label = pc.binary_join_element_wise("n", pc.utf8_lpad(index, 8, "0"), "")
        parts = ["s3://datasets/imagenet/train/", label, "/", label, "_", number.cast(pa.string())]
        uri = pc.binary_join_element_wise(*parts, ".JPEG", "")
        table = pa.table({"uri": uri, "label": label.dictionary_encode()})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=CHUNK)
    if writer is not None:
        writer.close()


def plan(path: Path) -> Callable[[], object]:
    """Read a list and cut it into shards."""
    from jobs.plan import shard_size, shards
    from storage.manifests import read_manifest

    def work() -> object:
        manifest = read_manifest(Location(str(path)))
        return shards(manifest.rows, shard_size(manifest.rows, targets_per_image=1))

    return work


def make_half_done(root: Path, rows: int) -> None:
    """A run in which every other part is there; a resume only looks at the names."""
    run = open_or_create(Location(str(root)), {"fingerprint_of": {"rows": rows}})
    Path(run.part(0).url).parent.mkdir()
    for index in range(0, -(-rows // ROWS_OF_A_PART), 2):
        (root / part_name(index)).write_bytes(b"part")


def resume(path: Path, root: Path) -> Callable[[], object]:
    """Plan again, and tell what is left to do."""
    from jobs.plan import remaining
    from storage.runs import open_run

    planned = plan(path)

    def work() -> object:
        run = open_run(Location(str(root)))
        left = remaining(planned(), run.committed())
        if not left:
            raise RuntimeError("half of the parts are there, and nothing is left to do")
        return left

    return work


def read_every_eighth(path: Path, rows: int) -> Callable[[], object]:
    """Read the manifest rows of every eighth shard, as a replica does that has seven others."""
    from storage.manifests import read_manifest
    from storage.row_reader import RowReader

    source = read_manifest(Location(str(path))).source(Location(str(path)))

    def work() -> object:
        reader = RowReader(source)
        for start in range(0, rows, REPLICAS * ROWS_OF_A_PART):
            reader.read(start, min(start + ROWS_OF_A_PART, rows))
        reader.close()
        return reader

    return work


def load_driver() -> Callable[[], object]:
    """What a driver holds before it looks at its list: torch, timm, Ray and a small ViT."""
    import jobs.explain
    from explainer import load_model

    del jobs
    return lambda: load_model("vit_tiny_patch16_224", seed=0)


def make_parts(root: Path, parts: int) -> None:
    """Parts of 4,096 rows with maps of noise."""
    run = open_or_create(Location(str(root)), {"fingerprint_of": {"parts": parts}})
    for index in range(min(parts, DISTINCT_PARTS)):
        run.publish(index, noise_part(index))
    for index in range(DISTINCT_PARTS, parts):
        os.link(run.part(index % DISTINCT_PARTS).url, run.part(index).url)


def noise_part(index: int) -> bytes:
    """A part of explained rows; columns that nothing here reads are null."""
    random = np.random.default_rng(index)
    kind = schema.explanations(GRID)
    rows = ROWS_OF_A_PART
    maps = random.random((rows, GRID[0] * GRID[1]), np.float32)
    labels, targets = random.integers(0, CLASSES, (2, rows))
    numbers = index * rows + np.arange(rows)
    given = {
        "run": ["0" * 16] * rows,
        "row": numbers,
        "image_id": [f"image-{n}" for n in numbers],
        "label": labels,
        "predicted": targets,
        "status": ["ok"] * rows,
        "target": targets,
        "target_name": [f"class {t}" for t in targets],
        "target_kind": ["predicted"] * rows,
        "target_rank": np.zeros(rows, np.int16),
        "saliency": schema.maps_to_arrow(maps, kind.field("saliency").type),
        "score_min": -random.random(rows, np.float32),
        "score_max": random.random(rows, np.float32),
    }
    arrays = [
        pa.array(given[field.name], field.type)
        if field.name in given
        else pa.nulls(rows, field.type)
        for field in kind
    ]
    return schema.encode_parquet(pa.Table.from_arrays(arrays, schema=kind), {"run": "0" * 16})


def aggregate_parts(root: Path, parts: int) -> Callable[[], object]:
    """The class heatmaps of all parts, in this process."""
    from jobs.aggregate import aggregate
    from storage.runs import open_run

    run = open_run(Location(str(root)))
    return lambda: aggregate(run, list(range(parts)), GRID)


def in_process(make: Callable[..., Callable[[], object]], *arguments: object) -> Cost:
    """Run `make(*arguments)()` in a process of its own; what `make` imports is not timed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, make, arguments))
    process.start()
    sender.close()
    cost: Cost = receiver.recv()
    process.join()
    return cost


def _measured(sender: object, make: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    work = make(*arguments)
    peak = Peak()
    with peak:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    sender.send(Cost(seconds, peak.own, peak.resident))  # type: ignore[attr-defined]


class Peak:
    """The most memory that this process has while it is entered, looked up 50 times a second."""

    own = resident = 0

    def __enter__(self) -> "Peak":
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while True:
            self.own = max(self.own, _status_bytes("RssAnon"))
            self.resident = max(self.resident, _status_bytes("VmRSS"))
            if self.stop.wait(0.02):
                return


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this benchmark needs Linux")


if __name__ == "__main__":
    main()
