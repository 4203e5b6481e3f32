"""What `saliency export` costs, and what it saves whoever asks for one class.

    python benchmarks/export.py [--rows N] [--classes N] [--queries N] [--folder DIR]

Makes a finished run of synthetic rows (smooth maps of 14 x 14 cells, every column filled, classes
drawn evenly and in no order), exports it with the command, and asks DuckDB for one class after the
other, each in the run and in the copy, one right after the other. Row groups are those that their
statistics do not rule out; bytes are what the process read (Linux), without DuckDB's own cache.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

# In place of this script's folder, whose explainer.py would hide the package.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.machine import describe
from storage import schema
from storage.locations import Location
from storage.runs import Run, open_or_create

GRID, COARSE = (14, 14), 4
ROWS_OF_A_PART = 4096  # as of a large run
MEGABYTE, GIGABYTE = 1e6, 2**30
SELECTIONS = {
    "all columns": "*",
    "two columns": "row, entropy",
    "an aggregate": "count(1), avg(border_mass)",
}
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Answer:
    """What one query of one class cost."""

    seconds: float
    read: int


def main() -> None:
    """Make the run, export it, ask both, print the table."""
    options = _options()
    out.print(describe("pyarrow", "duckdb"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run, copy = Path(folder, "run"), Path(folder, "copy")
        make_run(run, options.rows, options.classes)
        _export(run, copy, options.rows)
        classes = np.linspace(0, options.classes - 1, options.queries, dtype=int).tolist()
        _compare_groups(run, copy, classes)
        _compare_queries(run, copy, classes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What an export costs and what it saves.")
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=5, help="classes that are asked for")
    parser.add_argument("--folder", help="where run and copy lie meanwhile")
    return parser.parse_args()


def make_run(folder: Path, rows: int, classes: int) -> None:
    """A finished run of `rows` explained images at `folder`."""
    description = {"fingerprint_of": {"rows": rows}, "grid": list(GRID), "targets_per_image": 1}
    run = open_or_create(Location(str(folder)), description)
    digests = sha256()
    starts = range(0, rows, ROWS_OF_A_PART)

    def publish(start: int) -> str:
        table = synthetic(run, range(start, min(start + ROWS_OF_A_PART, rows)), classes)
        data = schema.encode_parquet(table, {"run": run.id})
        run.publish(start // ROWS_OF_A_PART, data)
        said = pq.read_schema(pa.BufferReader(data)).metadata
        return str(said[schema.CONTENT_DIGEST.encode()].decode())

    with ThreadPoolExecutor(2) as pool:
        made = track(pool.map(publish, starts), "making a run", len(starts), console=out)
        for digest in made:
            digests.update(digest.encode())
    run.write_summary(
        {
            "state": "complete",
            "rows": rows,
            "statuses": {"ok": rows},
            "parts": len(starts),
            "parts_digest": digests.hexdigest(),
        }
    )


def synthetic(run: Run, rows: range, classes: int) -> pa.Table:
    """Explained rows; four of five images are of the class that is predicted."""
    random = np.random.default_rng(rows.start)
    count = len(rows)
    predicted = random.integers(classes, size=count)
    label = np.where(random.random(count) < 0.8, predicted, random.integers(classes, size=count))
    maps = smooth_maps(random, count)
    peak = maps.reshape(count, -1).argmax(1)
    ids = [f"class-{c:05d}/{row:09d}.jpg" for c, row in zip(label, rows, strict=True)]
    values = {
        "run": [run.id] * count,
        "row": np.arange(rows.start, rows.stop),
        "image_id": ids,
        "uri": [f"s3://bucket/images/{name}" for name in ids],
        "label": label,
        "label_name": [f"class {c:05d}" for c in label],
        "status": ["ok"] * count,
        "width": random.integers(200, 2000, count),
        "height": random.integers(200, 2000, count),
        "format": ["JPEG"] * count,
        "mode": ["RGB"] * count,
        "bytes": random.integers(10_000, 1_000_000, count),
        "has_exif": random.random(count) < 0.5,
        "jpeg_quality": random.integers(60, 100, count),
        "predicted": predicted,
        "predicted_name": [f"class {c:05d}" for c in predicted],
        "target": predicted,
        "target_name": [f"class {c:05d}" for c in predicted],
        "target_kind": ["predicted"] * count,
        "target_rank": np.zeros(count),
        "saliency": maps.reshape(count, -1),
        "peak_row": peak // GRID[1],
        "peak_col": peak % GRID[1],
    }
    fields = schema.explanations(GRID)
    columns = [_column(field, values.get(field.name), random, count) for field in fields]
    return pa.Table.from_arrays(columns, schema=fields)


def smooth_maps(random: np.random.Generator, count: int) -> NDArray[np.float16]:
    """[count, 14, 14] in [0, 1]: coarse noise, interpolated, with a little fine noise on top."""
    at = np.linspace(0, COARSE - 1, GRID[0], dtype=np.float32)
    weights = np.maximum(1 - abs(at[:, None] - np.arange(COARSE, dtype=np.float32)), 0)
    coarse = random.random((count, COARSE, COARSE), dtype=np.float32)
    maps = weights @ coarse @ weights.T
    maps += 0.05 * random.random(maps.shape, dtype=np.float32)
    maps -= maps.min((1, 2), keepdims=True)
    return (maps / maps.max((1, 2), keepdims=True)).astype(np.float16)


def _column(field: pa.Field, values: object, random: np.random.Generator, count: int) -> pa.Array:
    """The values in the column's type; random numbers or nulls where there are none."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return schema.maps_to_arrow(values, field.type)
    if values is not None:
        return pa.array(values).cast(field.type)
    if pa.types.is_floating(field.type):
        return pa.array(random.random(count, dtype=np.float32))
    return pa.nulls(count, field.type)


def _export(run: Path, copy: Path, rows: int) -> None:
    """Run the command and say what it took, Python's start included."""
    command = [sys.executable, "-m", "jobs.cli", "export", str(run), "--out", str(copy)]
    started = time.perf_counter()
    root = Path(__file__).resolve().parents[1]
    told = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GIGABYTE
    out.print(told)
    out.print(
        f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s, "
        f"peak resident memory {peak:.2f} GiB with the mapped spill"
    )


def _compare_groups(run: Path, copy: Path, classes: list[int]) -> None:
    """How many row groups may hold a class, by their statistics."""
    target = schema.explanations(GRID).get_field_index("target")
    for name, folder in (("run", run), ("copy", copy)):
        footers = [pq.read_metadata(path) for path in _files(folder)]
        groups = [f.row_group(i) for f in footers for i in range(f.num_row_groups)]
        ranges = [group.column(target).statistics for group in groups]
        kept = [sum(r.min <= each <= r.max for r in ranges) for each in classes]
        size = sum(footer.serialized_size for footer in footers) / MEGABYTE
        out.print(
            f"{name:<5} {len(footers)} files, footers {size:.2f} MB, {len(groups)} row groups; "
            f"{statistics.median(kept):g} may hold a class"
        )


def _compare_queries(run: Path, copy: Path, classes: list[int]) -> None:
    """DuckDB on both: medians over the classes; a ratio is the median of the pairs' ratios."""
    size = sum(path.stat().st_size for path in _files(run)) / MEGABYTE
    out.print(f"\nWHERE target = k; MB read, of {size:.0f} MB in the run")
    out.print(
        f"{'':<14} {'run ms':>8} {'MB':>7} {'copy ms':>8} {'MB':>7} {'faster x':>9} {'less x':>7}"
    )
    for title, selected in SELECTIONS.items():
        pairs = [(_ask(run, selected, each), _ask(copy, selected, each)) for each in classes]
        before, after = ([pair[i] for pair in pairs] for i in (0, 1))
        faster = statistics.median(b.seconds / a.seconds for b, a in pairs)
        less = statistics.median(b.read / a.read for b, a in pairs)
        out.print(
            f"{title:<14} {_milliseconds(before):>8.0f} {_read(before):>7.1f} "
            f"{_milliseconds(after):>8.0f} {_read(after):>7.1f} {faster:>9.1f} {less:>7.1f}"
        )


def _ask(folder: Path, selected: str, target: int) -> Answer:
    with duckdb.connect(config={"enable_external_file_cache": "false"}) as database:
        before, started = _bytes_read(), time.perf_counter()
        database.sql(
            f"SELECT {selected} FROM '{folder}/explanations/*.parquet' WHERE target = {target}"
        ).to_arrow_table()
        return Answer(time.perf_counter() - started, _bytes_read() - before)


def _bytes_read() -> int:
    first, _ = Path("/proc/self/io").read_text().split("\n", 1)
    return int(first.removeprefix("rchar: "))


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "explanations").glob("*.parquet"))


def _milliseconds(answers: list[Answer]) -> float:
    return 1000 * statistics.median(answer.seconds for answer in answers)


def _read(answers: list[Answer]) -> float:
    return statistics.median(answer.read for answer in answers) / MEGABYTE


if __name__ == "__main__":
    main()
