"""Methods held against each other on the planted benchmark's clean model and its forty classes.

    python benchmarks/evaluate_base.py DIR --base FOLDER [--images N] [--methods a,b,c]

FOLDER is what `benchmarks/planted.py OUT base` trained (OUT/base). Draws pictures that it has not
seen to DIR/pictures, then runs `saliency explain` and `saliency evaluate` on them.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.pop(0)  # this folder, whose explainer.py would hide the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks.evaluated import explain_and_evaluate
from benchmarks.machine import describe
from benchmarks.planted_pictures import CLASSES, QUALITY, sample
from jobs.config import EvaluateConfig

FIRST_SEED = 200_000
out = Console(soft_wrap=True, highlight=False)


def main() -> None:
    """Draw, explain and evaluate."""
    parser = argparse.ArgumentParser(description="Hold methods against each other.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--images", type=int, default=520)
    parser.add_argument("--methods", default=EvaluateConfig(run="").methods)
    options = parser.parse_args()
    out.print(describe("torch", "timm"))
    folder = options.dir / "pictures"
    for number in range(options.images):
        write(folder, number % len(CLASSES), FIRST_SEED + number // len(CLASSES))
    sys.exit(explain_and_evaluate(options.dir, options.base / "model.safetensors", options))


def write(folder: Path, class_index: int, seed: int) -> None:
    """One picture, in the folder of its class."""
    place = folder / CLASSES[class_index] / f"{seed}.jpg"
    place.parent.mkdir(parents=True, exist_ok=True)
    pixels = sample(class_index, seed, None).pixels.transpose(1, 2, 0)
    Image.fromarray(pixels).save(place, "JPEG", quality=QUALITY)


if __name__ == "__main__":
    main()
