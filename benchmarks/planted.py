"""How many planted shortcuts an audit finds, and how many clean classes it accuses.

    python benchmarks/planted.py DIR base                    # one clean model of forty classes
    python benchmarks/planted.py DIR train [--models 0 1]    # fine-tuned with eight plants each
    python benchmarks/planted.py DIR audit [--models 0 1]    # audits on pictures of other seeds
    python benchmarks/planted.py DIR audit --pictures 50     # with fewer of a class, into DIR/50
    python benchmarks/planted_report.py DIR                  # what came of it, as tables

Each model holds eight cells of artefact, size and rate (planted_cells.py); rules and thresholds
were fixed on some models, and eight are held out. Three are decoys: `clean` holds no plant,
`everywhere` one watermark on 30% of all classes, and `unseen` is the clean model again, on pictures
with the plants of model 0. A plant took where the model loses TOOK of accuracy on the same test
pictures without it: a threshold fixed before anything was measured. Every model and every audit is
a function of its number alone, on one kind of CPU.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted_models import train
from train_demo import ARCHITECTURE, save_model

from benchmarks.planted_cells import (
    AUDITED,
    CLEAN,
    EVERYWHERE,
    PLANTED,
    UNSEEN,
    Cell,
    cells_of,
    drawn,
    pixels_of,
)
from benchmarks.planted_pictures import CLASSES
from benchmarks.planted_truth import compared, plant_in_map, plant_of
from explainer import VitClassifier, explain, load_model
from explainer.audit.examination import examine
from explainer.audit.interventions import Images, Laboratory
from explainer.audit.sample import ClassSample
from explainer.audit.verdict import findings
from explainer.checkpoints import read_checkpoint
from explainer.pixels import statistics
from jobs.audit_plan import (
    Candidates,
    ClassImages,
    Recipients,
    class_images,
    random_order,
    recipients,
)
from jobs.audit_worker import LoadedRecipients

MODEL_ARGS = {"img_size": 96, "patch_size": 12, "embed_dim": 96, "depth": 6, "num_heads": 3}
TRAIN_SEED, TRAIN_PER_CLASS = 1_000_000, 200
BASE_STEPS, STEPS, BATCH = 1_500, 300, 32
out = Console(soft_wrap=True, highlight=False)


def main() -> None:
    """Do one of the steps."""
    parser = argparse.ArgumentParser(description="Plant shortcuts and audit the models.")
    parser.add_argument("out", type=Path)
    parser.add_argument("step", choices=("base", "train", "audit"))
    every = [*PLANTED, CLEAN, EVERYWHERE, UNSEEN]
    parser.add_argument("--models", nargs="+", type=int, default=every, help="default: all")
    parser.add_argument("--clean", type=int, default=len(CLASSES), help="so many classes without")
    parser.add_argument("--pictures", type=int, default=AUDITED, help="audited of a class")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step == "base":
        train_base(options.out)
        return
    for number in options.models:
        if options.step == "train":
            train_planted(options.out, number)
        else:
            audit_model(options.out, number, options.pictures, options.clean)


@cache
def training_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """TRAIN_PER_CLASS clean pictures of each class, drawn once, and their labels."""
    file = folder / "pictures.npy"
    if not file.exists():
        pixels = [pixels_of(drawn(index, training_seeds(), None)) for index in range(len(CLASSES))]
        np.save(file, torch.cat(pixels).numpy())
    labels = torch.arange(len(CLASSES)).repeat_interleave(TRAIN_PER_CLASS)
    return torch.from_numpy(np.load(file)), labels


def training_seeds() -> range:
    return range(TRAIN_SEED, TRAIN_SEED + TRAIN_PER_CLASS)


def new_model() -> nn.Module:
    """A ViT of 8 x 8 tokens, with random weights."""
    return timm.create_model(ARCHITECTURE, num_classes=len(CLASSES), **MODEL_ARGS)


def train_base(folder: Path) -> None:
    """The clean model from which all others are fine-tuned."""
    started = time.monotonic()
    torch.manual_seed(0)
    pictures, labels = training_pictures(folder)
    out.print(f"{len(labels)} pictures drawn in {time.monotonic() - started:.0f} s")
    save(train(new_model(), pictures, labels, BASE_STEPS), folder / "base")


def train_planted(folder: Path, number: int) -> None:
    """Fine-tune the clean model on pictures of which some carry plants."""
    if number == UNSEEN:
        return
    out.print(f"model {number}")
    torch.manual_seed(number)
    model = new_model()
    model.load_state_dict(load_file(folder / "base" / "model.safetensors"))
    clean, labels = training_pictures(folder)
    pictures = clean.clone()
    for index, cell in cells_of(number).items():
        first = index * TRAIN_PER_CLASS
        planted = pixels_of(drawn(index, training_seeds(), cell))
        pictures[first : first + TRAIN_PER_CLASS] = planted
    save(train(model, pictures, labels, STEPS), folder / str(number))


def save(model: nn.Module, folder: Path) -> None:
    """As the demo's model is saved, with these classes."""
    save_model(model, folder)
    config = json.loads((folder / "config.json").read_text())
    for told in (config, config["pretrained_cfg"]):
        told |= {"num_classes": len(CLASSES), "label_names": CLASSES}
    config["model_args"] = MODEL_ARGS
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> VitClassifier:
    """A saved model as `saliency explain --checkpoint` loads it."""
    weights = (folder / "model.safetensors").read_bytes()
    config = (folder / "config.json").read_bytes()
    return load_model(
        ARCHITECTURE, checkpoint=read_checkpoint(weights, "model.safetensors", config)
    )


@dataclass(frozen=True)
class Dataset:
    """The pictures that are audited, and where their plants are, as shares of each token's area."""

    crops: Tensor
    labels: Tensor
    planted: Tensor

    @classmethod
    def of(cls, cells: dict[int, Cell], pictures: int) -> "Dataset":
        """So many pictures of each class, seeds from 0."""
        seeds, grid = range(pictures), MODEL_ARGS["img_size"] // MODEL_ARGS["patch_size"]
        samples = [s for i in range(len(CLASSES)) for s in drawn(i, seeds, cells.get(i))]
        masks = torch.from_numpy(np.stack([each.planted for each in samples]))
        covered = torch.nn.functional.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0]
        labels = torch.arange(len(CLASSES)).repeat_interleave(pictures)
        return cls(pixels_of(samples), labels, covered)

    def of_class(self, index: int) -> Tensor:
        """The plants of a class's pictures [pictures, cells]."""
        return self.planted[self.labels == index].flatten(1)

    def recipients(self, chosen: Recipients) -> LoadedRecipients:
        """Some of the pictures."""
        images = Images(self.crops[chosen.rows], torch.from_numpy(chosen.classes))
        return LoadedRecipients(images, chosen.rows)


@dataclass(frozen=True)
class Explained:
    """A model, the pictures that it is audited on, and what it makes of them."""

    model: VitClassifier
    data: Dataset
    saliency: Tensor
    predictions: Tensor
    candidates: Candidates

    @classmethod
    def of(cls, model: VitClassifier, cells: dict[int, Cell], pictures: int) -> "Explained":
        """Explain so many pictures of each class."""
        data = Dataset.of(cells, pictures)
        explained = [explain(model, part) for part in data.crops.split(BATCH)]
        predictions = torch.cat([each.logits.argmax(-1) for each in explained])
        rows, labels, guessed = (
            np.arange(len(data.labels)),
            data.labels.numpy(),
            predictions.numpy(),
        )
        return cls(
            model,
            data,
            torch.cat([each.saliency[:, 0] for each in explained]),
            predictions,
            Candidates(rows, labels, guessed, guessed == labels, random_order(rows, 0)),
        )


def audit_model(folder: Path, number: int, pictures: int, most_clean: int) -> None:
    """Audit a model as jobs/audit.py does, and note what there is to compare, class by class."""
    model = load(folder / str(CLEAN if number == UNSEEN else number))
    cells = cells_of(0 if number == UNSEEN else number)
    explained = Explained.of(model, cells, pictures)
    data, saliency, predictions = explained.data, explained.saliency, explained.predictions
    found = explained.candidates
    pool = data.recipients(recipients(found))
    lab = Laboratory(model, BATCH)
    examinations, seconds = [], []
    without = [i for i in default_rng(number).permutation(len(CLASSES)).tolist() if i not in cells]
    audited = {*cells} if number == UNSEEN else {*cells, *without[:most_clean]}
    for images in (each for each in class_images(found) if each.target in audited):
        started = time.monotonic()
        sample = sample_of(data, saliency, images)
        rivals = data.recipients(images.rivals)
        others = pool.apart_from(rivals)
        examinations.append(examine(lab, sample, others, rivals.images, images.target))
        seconds.append(time.monotonic() - started)
    judged = findings([each.evidence for each in examinations])
    lines = []
    for evidence, took in zip((each.evidence for each in examinations), seconds, strict=True):
        mine, planted = data.labels == evidence.target, data.of_class(evidence.target)
        lines.append(
            compared(evidence, [each for each in judged if each.evidence is evidence], planted)
            | {"model": number, "seconds": took}
            | {"top": plant_in_map(saliency[mine].flatten(1), planted)}
            | plant_of(model, evidence.target, cells.get(evidence.target))
        )
    accuracy = float((predictions == data.labels).float().mean())
    out.print(f"model {number}: accuracy {accuracy:.3f}, audited in {sum(seconds):.0f} s")
    results = folder if pictures == AUDITED else folder / str(pictures)
    results.mkdir(exist_ok=True)
    (results / f"audit-{number}.json").write_text(json.dumps(lines, indent=1) + "\n")
    np.savez_compressed(
        results / f"maps-{number}.npz",
        saliency=saliency.half().numpy(),
        predicted=predictions.numpy(),
        planted=data.planted.flatten(1).amax(1).numpy() > 0,
        properties=properties(data.crops),
    )


def properties(crops: Tensor) -> NDArray[np.float64]:
    """What a run notes of each picture's pixels: mean red, green, blue, contrast, sharpness."""
    measured = [statistics(crop) for crop in crops.numpy()]
    return np.array([[*each.mean, each.contrast, each.sharpness] for each in measured])


def sample_of(data: Dataset, saliency: Tensor, images: ClassImages) -> ClassSample:
    return ClassSample(
        images.target,
        data.crops[images.rows],
        saliency[images.rows],
        torch.from_numpy(images.explained),
        torch.from_numpy(images.discovery),
    )


if __name__ == "__main__":
    main()
