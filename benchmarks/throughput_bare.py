"""The bare loop of throughput.py: `throughput_bare.py IMAGES ROWS MODEL RESULT`.

Reads 32 files, decodes them one after the other, explains them, and so on, in this process alone;
keeps the maps, and writes them to ROWS once the clock has stopped.
"""

import json
import os
import sys
import time
from pathlib import Path

# Python puts a script's folder first on the path, where a file would hide a package it uses.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from explainer import Explanation, VitClassifier, decode, explain, load_model
from storage import schema

BATCH = 32


def main() -> None:
    """Explain the images and write rows and times."""
    images, rows, name, result = sys.argv[1:]
    torch.set_num_threads(os.cpu_count() or 1)
    model = load_model(name, seed=0)
    files = sorted(path for path in Path(images).rglob("*") if path.is_file())
    files.sort(key=str)
    seconds = dict.fromkeys(("fetch", "decode", "explain"), 0.0)
    explained = []
    started = time.time()
    for i in range(0, len(files), BATCH):
        explained.append(_batch(model, files[i : i + BATCH], seconds))
        if i == 0:  # from here on: the moment when the model had its first batch
            ready = started + seconds["fetch"] + seconds["decode"]
    finished = time.time()
    Path(result).write_text(json.dumps(seconds | {"ready": ready, "finished": finished}))
    ids = [str(path.relative_to(images)) for path in files]
    pq.write_table(_table(model, ids, Explanation.concatenated(explained)), rows)


def _batch(model: VitClassifier, files: list[Path], seconds: dict[str, float]) -> Explanation:
    started = time.perf_counter()
    data = [path.read_bytes() for path in files]
    fetched = time.perf_counter()
    crops = np.empty((len(data), 3, *model.preprocessing.input_size), dtype=np.uint8)
    for place, content in zip(crops, data, strict=True):
        place[:] = decode(content, model.preprocessing).crop
    decoded = time.perf_counter()
    explanation = explain(model, torch.from_numpy(crops))
    explained = time.perf_counter()
    for name, spent in zip(
        seconds, (fetched - started, decoded - fetched, explained - decoded), strict=True
    ):
        seconds[name] += spent
    return explanation


def _table(model: VitClassifier, ids: list[str], found: Explanation) -> pa.Table:
    kind = schema.explanations(model.grid).field("saliency").type
    return pa.table(
        {
            "image_id": ids,
            "status": ["ok"] * len(ids),
            "predicted": found.logits.argmax(-1).numpy(),
            "target": found.targets[:, 0].numpy(),
            "saliency": schema.maps_to_arrow(found.saliency[:, 0].numpy(), kind),
            "score_min": found.scores.amin((-3, -2, -1)).numpy(),
            "score_max": found.scores.amax((-3, -2, -1)).numpy(),
        }
    )


if __name__ == "__main__":
    main()
