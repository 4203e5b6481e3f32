"""What it costs to make a crop of a photograph, against timm's own transform on the same core.

    python benchmarks/decode.py [DIR] [--model NAME] [--photos N] [--width N] [--repeats N]
                                [--check]

DIR is a folder of photographs at any depth; the environment variable SALIENCY_PHOTOS by default.
With --width they are stored anew first, that many pixels across, as 4:2:0 JPEGs of quality 85.
In every round each way takes all photographs once, one way after the other, as a process that loads
takes images: nothing else passes through its caches. A round takes a few seconds, so that whatever
else the machine does meanwhile hits all of them alike. Seconds are those that the process computed,
so that a way that took a second core would pay for it. A ratio is the median over rounds of timm's
seconds over a way's own in the same round.

`timm` is what a user of timm has: bytes, Image.open, convert, create_transform(is_training=False),
a float tensor. `exact` and `fast` are explainer.decode, which makes a uint8 crop and what the file
tells: header, jpeg_quality, means, contrast, sharpness.
"""

import argparse
import io
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

# Before numpy and torch are loaded: one core for all that they do.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from machine import describe
from PIL import Image
from rich.console import Console
from timm.data import create_transform

# Python puts a script's folder first on the path, where explainer.py would hide the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from explainer import decode, load_model, pixels
from explainer.preprocess import Preprocessing

PHOTOS = "SALIENCY_PHOTOS"
SUFFIXES = (".jpg", ".jpeg")
FASTER, LEVELS, MEAN = 2.2, 2, 0.01  # --check
STAGES = ("header", "pixels", "resize", "crop", "statistics")
Seconds = dict[str, float]
out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Difference:
    """Between the fast and the exact crops of all photographs, in levels of 255."""

    largest: int
    mean: float
    differing: float  # share of the values


def main() -> None:
    """Time the ways and the stages, compare the crops, print both; --check holds the limits."""
    options = _options()
    torch.set_num_threads(1)
    files = [_stored(path, options.width) for path in _photographs(options)]
    fast = load_model(options.model, seed=0).preprocessing
    ways = _ways(fast)
    out.print(describe("torch", "timm", "pillow", "simplejpeg", "numpy"))
    size = " x ".join(map(str, fast.input_size))
    megabytes = sum(map(len, files)) / len(files) / 1e6
    out.print(
        f"{options.model} ({size}, {fast.interpolation}, {fast.crop_mode}, crop_pct "
        f"{fast.crop_pct}), one thread, {options.repeats} rounds of {len(files)} photographs of "
        f"{megabytes:.2f} MB on average\n"
    )
    difference = _difference(files, fast)  # and everything is warm
    rounds = [_round(files, ways) for _ in range(options.repeats)]
    ratios = _table(rounds, len(files))
    _stage_table([_stages(files, fast) for _ in range(options.repeats)], len(files))
    out.print(
        f"\nfast crops against exact ones: {difference.largest} levels of 255 at most, "
        f"{difference.mean:.4f} on average; {difference.differing:.2%} of the values differ"
    )
    if options.check:
        _check(ratios["fast"], difference)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a crop costs, against timm's transform.")
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get(PHOTOS))
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="whose preprocessing")
    parser.add_argument("--photos", type=int, help="take that many, evenly over the folder")
    parser.add_argument("--width", type=int, help="store them anew, that many pixels across")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit 1 under {FASTER}x, over {LEVELS} levels, or from a mean of {MEAN} on",
    )
    options = parser.parse_args()
    if options.folder is None:
        parser.error(f"give a folder of photographs (.jpg), or set {PHOTOS} to one")
    return options


def _photographs(options: argparse.Namespace) -> list[Path]:
    found = sorted(
        path for path in Path(options.folder).rglob("*") if path.suffix.lower() in SUFFIXES
    )
    if not found:
        sys.exit(f"no {' or '.join(SUFFIXES)} file under {options.folder}")
    count = min(options.photos or len(found), len(found))
    return [found[number * len(found) // count] for number in range(count)]


def _stored(path: Path, width: int | None) -> bytes:
    """A photograph as its file is, or as 4:2:0 JPEG of quality 85."""
    if width is None:
        return path.read_bytes()
    image = Image.open(path).convert("RGB")
    buffer = io.BytesIO()
    resized = image.resize((width, round(width * image.height / image.width)))
    resized.save(buffer, "JPEG", quality=85, subsampling="4:2:0")
    return buffer.getvalue()


def _ways(fast: Preprocessing) -> dict[str, Callable[[bytes], object]]:
    exact = replace(fast, exact=True)
    transform = create_transform(
        (3, *fast.input_size),
        is_training=False,
        interpolation=fast.interpolation,
        mean=fast.mean,
        std=fast.std,
        crop_pct=fast.crop_pct,
        crop_mode=fast.crop_mode,
    )
    return {
        "timm": lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB")),
        "exact": lambda data: decode(data, exact),
        "fast": lambda data: decode(data, fast),
    }


def _round(files: list[bytes], ways: dict[str, Callable[[bytes], object]]) -> Seconds:
    seconds: Seconds = defaultdict(float)
    for name, way in ways.items():
        started = time.process_time()
        for data in files:
            way(data)
        seconds[name] = time.process_time() - started
    return seconds


def _stages(files: list[bytes], preprocessing: Preprocessing) -> Seconds:
    """The steps that decode takes one after the other, timed apart."""
    seconds: Seconds = defaultdict(float)
    for data in files:
        marks = [time.process_time()]
        with Image.open(io.BytesIO(data)) as image:
            marks.append(time.process_time())
            rgb = pixels.rgb_pixels(image, data)
            marks.append(time.process_time())
        size = preprocessing.resized(*rgb.shape[:2])
        resized = pixels.resized(rgb, size, preprocessing.interpolation)
        marks.append(time.process_time())
        crop = pixels.centred(resized, preprocessing.input_size, preprocessing.fill)
        marks.append(time.process_time())
        pixels.statistics(crop)
        marks.append(time.process_time())
        for stage, start, end in zip(STAGES, marks, marks[1:], strict=False):
            seconds[stage] += end - start
    return seconds


def _table(rounds: list[Seconds], count: int) -> dict[str, float]:
    """Print a line a way; returns how many times timm's speed each has."""
    out.print(
        f"{'way':<12} {'images/s':>9} {'ms an image':>12} {'x timm':>7} {'from':>6} {'to':>6}"
    )
    ratios = {}
    for name in rounds[0]:
        each = [seconds["timm"] / seconds[name] for seconds in rounds]
        typical = statistics.median(seconds[name] for seconds in rounds) / count
        ratios[name] = statistics.median(each)
        out.print(
            f"{name:<12} {1 / typical:>9.0f} {1000 * typical:>12.2f} {ratios[name]:>7.2f} "
            f"{min(each):>6.2f} {max(each):>6.2f}"
        )
    return ratios


def _stage_table(rounds: list[Seconds], count: int) -> None:
    typical = {
        stage: statistics.median(seconds[stage] for seconds in rounds) / count for stage in STAGES
    }
    total = sum(typical.values())
    out.print(f"\n{'stage of fast':<12} {'ms an image':>9} {'share':>7}")
    for stage, seconds in typical.items():
        out.print(f"{stage:<12} {1000 * seconds:>12.2f} {seconds / total:>7.0%}")


def _difference(files: list[bytes], fast: Preprocessing) -> Difference:
    exact = replace(fast, exact=True)
    largest, total, differing, values = 0, 0, 0, 0
    for data in files:
        ours, timms = decode(data, fast).crop, decode(data, exact).crop
        if ours is None or timms is None:
            sys.exit("a photograph cannot be decoded; take the broken files out of the folder")
        levels = np.abs(ours.astype(np.int64) - timms)
        largest = max(largest, int(levels.max()))
        total += int(levels.sum())
        differing += np.count_nonzero(levels)
        values += levels.size
    return Difference(largest, total / values, differing / values)


def _check(ratio: float, difference: Difference) -> None:
    missed = []
    if ratio < FASTER:
        missed.append(f"fast is {ratio:.2f}x timm's speed; the limit is {FASTER}")
    if difference.largest > LEVELS:
        missed.append(f"crops differ by {difference.largest} levels; the limit is {LEVELS}")
    if difference.mean >= MEAN:
        missed.append(f"crops differ by {difference.mean:.4f} levels; the limit is {MEAN}")
    for line in missed:
        out.print(line)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
