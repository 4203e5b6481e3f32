"""Where the evidence is known: the demo's pictures whose prediction flips without their plant.

    python benchmarks/planted_evidence.py DIR [--images N] [--methods a,b,c]

Draws planted pictures of both planted classes, each with and without its plant, and keeps those
that the demo's model calls right with it and wrong without. These go to DIR/pictures, their plants'
places to DIR/boxes.parquet; then `saliency explain` and `saliency evaluate --boxes` run on them, as
a user would run them. What to read: "Top tenth in boxes".
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.pop(0)  # this folder, whose explainer.py would hide the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks.evaluated import explain_and_evaluate
from benchmarks.machine import describe
from explainer import VitClassifier, decode, load_model
from explainer.checkpoints import read_checkpoint
from jobs import pictures
from jobs.config import EvaluateConfig

# As in jobs/demo.py, which imports Ray: too early, as the command sets what Ray reads first.
MODEL = Path(__file__).resolve().parents[1] / "jobs" / "demo_model" / "model.safetensors"
ARCHITECTURE = "vit_tiny_patch16_224"
CANDIDATES = range(100_000, 101_500)  # of no picture that the model was trained on
AT_ONCE = 256
out = Console(soft_wrap=True, highlight=False)


def main() -> None:
    """Draw, keep what is decided by its plant, explain and evaluate."""
    parser = argparse.ArgumentParser(description="Hold methods against known evidence.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--images", type=int, default=250, help="most pictures of a class")
    parser.add_argument("--methods", default=EvaluateConfig(run="").methods)
    options = parser.parse_args()
    out.print(describe("torch", "timm"))
    folder = options.dir / "pictures"
    if not folder.exists():
        write_decided(folder, options.dir / "boxes.parquet", options.images)
    boxes = options.dir / "boxes.parquet"
    sys.exit(explain_and_evaluate(options.dir, MODEL, options, boxes))


def write_decided(folder: Path, boxes: Path, most: int) -> None:
    """Write the pictures whose prediction their plants decide, and the plants' places."""
    content = MODEL.read_bytes(), MODEL.name, (MODEL.parent / "config.json").read_bytes()
    model = load_model(ARCHITECTURE, checkpoint=read_checkpoint(*content))
    rows = []
    for name in pictures.PLANT_RATES:
        target = model.class_names.index(name)
        (folder / name).mkdir(parents=True)
        with_it, without = (
            predictions(model, [pictures.draw(name, seed, planted=planted) for seed in CANDIDATES])
            for planted in (True, False)
        )
        decided = np.flatnonzero((with_it == target) & (without != target))
        out.print(f"{name}: {len(decided)} of {len(CANDIDATES)} pictures flip without the plant")
        for seed in decided[:most]:
            picture = pictures.draw(name, CANDIDATES[seed], planted=True)
            file = f"{name}/{CANDIDATES[seed]}.jpg"
            (folder / file).write_bytes(pictures.jpeg(picture))
            place = picture.plant
            if place is not None:
                corners = place.left, place.top, place.left + place.width, place.top + place.height
                rows.append((file, *corners))
    names = ("image_id", "left", "top", "right", "bottom")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), boxes
    )


@torch.inference_mode()
def predictions(model: VitClassifier, drawn: list[pictures.Picture]) -> np.ndarray:
    """The class of each picture, as its JPEG file is read."""
    crops = [decode(pictures.jpeg(picture), model.preprocessing).crop for picture in drawn]
    parts = torch.from_numpy(np.stack(crops)).split(AT_ONCE)
    return torch.cat([model.vit(model.normalise(part)).argmax(-1) for part in parts]).numpy()


if __name__ == "__main__":
    main()
