"""What bad images cost: a list in which a tenth are bad, and the same list without them.

    python benchmarks/bad_images.py [FOLDER] [--images N] [--rounds N] [--seed S] [--check]

Two lists of N (20,000) images, photographs of FOLDER (SALIENCY_PHOTOS) over and over: `clean` names
good files only, `bad` in a tenth of its rows, at random places, one of

    missing, empty, truncated, HTML, noise, a folder, a picture of 30,000 x 30,000 pixels

`saliency explain` runs over both in turn, with a tiny vision transformer of random weights, so that
files and not the model take the time. Every row must be there, with the status that its kind has.
The time is the run's without its start-up; the ratio, by good images, is that of one round.
--check wants the median ratio at most 1.2.
"""

import argparse
import csv
import json
import os
import random
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from rich.console import Console

from benchmarks.machine import describe
from jobs.cli import run, set_ray_environment
from jobs.config import ExecutionConfig, ExplainConfig, InputConfig, ModelConfig
from storage.locations import Location
from storage.runs import open_run

SHARE_OF_BAD, MOST_RATIO = 0.1, 1.2
MODEL, SMALL = "test_vit", {"depth": 2, "num_classes": 10}
STATUSES = {
    "missing": "missing", "empty": "truncated", "truncated": "truncated", "html": "undecodable",
    "noise": "undecodable", "folder": "unsupported", "bomb": "too_large",
}  # fmt: skip
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Measured:
    """A run's time without its start-up, by images that have a map."""

    images: int
    good: int
    seconds: float

    @property
    def per_good(self) -> float:
        """Seconds for a good image."""
        return self.seconds / self.good


def main() -> None:
    """Measure, print a line a run, and with --check hold the ratio."""
    options = _options()
    set_ray_environment(None)  # before Ray is imported
    out.print(describe("ray", "torch", "pyarrow"))
    ratios = []
    with TemporaryDirectory(prefix="saliency-bad-") as name:
        folder = Path(name)
        photos = sorted(str(path) for path in Path(options.folder).resolve().rglob("*.jpg"))
        bad = _bad_files(folder, photos[0])
        of_rows = {
            "clean": ["good"] * options.images,
            "bad": _kinds(options.images, options.seed),
        }
        lists = {
            which: _write_list(folder / f"{which}.csv", kinds, photos, bad)
            for which, kinds in of_rows.items()
        }
        for number in range(options.rounds):
            measured = {
                which: _explain(path, folder / f"{which}-{number}", of_rows[which])
                for which, path in lists.items()
            }
            ratios.append(measured["bad"].per_good / measured["clean"].per_good)
            for which, one in measured.items():
                out.print(
                    f"{number + 1} {which:<6} {one.images} images, {one.good} good, "
                    f"{one.seconds:7.1f} s, {1000 * one.per_good:.2f} ms a good image"
                )
    ratio = statistics.median(ratios)
    out.print(f"bad / clean, by good images: {ratio:.2f}; wanted at most {MOST_RATIO}")
    sys.exit(options.check and ratio > MOST_RATIO)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("SALIENCY_PHOTOS"))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.folder is None:
        parser.error("name a FOLDER of photographs, or set SALIENCY_PHOTOS")
    return options


def _kinds(images: int, seed: int) -> list[str]:
    """A kind for every row, in a random order."""
    kinds = list(STATUSES)
    bad = round(images * SHARE_OF_BAD)
    chosen = [kinds[i % len(kinds)] for i in range(bad)] + ["good"] * (images - bad)
    random.Random(seed).shuffle(chosen)
    return chosen


def _bad_files(folder: Path, photo: str) -> dict[str, str]:
    """A path for every bad kind."""
    whole = Path(photo).read_bytes()
    data = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "noise": random.Random(0).randbytes(50_000),
    }
    paths = {kind: folder / f"{kind}.jpg" for kind in STATUSES}
    for kind, content in data.items():
        paths[kind].write_bytes(content)
    paths["folder"].mkdir()
    Image.new("1", (30_000, 30_000)).save(paths["bomb"], format="PNG")
    return {kind: str(path) for kind, path in paths.items()}


def _write_list(path: Path, kinds: list[str], photos: list[str], bad: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "uri"])
        for row, kind in enumerate(kinds):
            writer.writerow([str(row), bad.get(kind, photos[row % len(photos)])])
    return path


def _explain(images: Path, place: Path, kinds: list[str]) -> Measured:
    """Run the job over a list; every row must have its status."""
    code = run(
        ExplainConfig(
            model=ModelConfig(MODEL, "random:0", model_args=json.dumps(SMALL)),
            out=str(place),
            input=InputConfig(manifest=str(images)),
            execution=ExecutionConfig(device="cpu", max_failed=1.0),
        )
    )
    stored = open_run(Location(str(place)))
    summary = stored.read_summary()
    if code != 0 or summary is None:
        raise RuntimeError(f"the run over {images.name} ended with exit code {code}")
    parts = [stored.read_part(i, ["row", "status"]) for i in sorted(stored.committed())]
    rows = {row["row"]: row["status"] for part in parts for row in part.to_pylist()}
    wanted = [STATUSES.get(kind, "ok") for kind in kinds]
    if [rows.get(row) for row in range(len(wanted))] != wanted or len(rows) != len(wanted):
        raise RuntimeError(f"rows are missing or have other statuses: {Counter(rows.values())}")
    seconds = summary["last_attempt"]["seconds"]
    return Measured(len(wanted), wanted.count("ok"), seconds["run"] - seconds["start"])


if __name__ == "__main__":
    main()
