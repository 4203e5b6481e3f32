"""What the audit's tests say of planted shortcuts that are handed to them.

    python benchmarks/planted_oracle.py DIR [--models 49 50]    # after planted.py DIR audit

A plant is missed because no cue is found that is it, or because what removing and pasting show is
too little for as many pictures. Here each plant that took is tested as a cue that is known: its
pictures are the carriers, its pixels the masks, and q-values are over these cues alone. What is not
flagged now is beyond the tests, whatever is looked for; it bounds what the audit can find with as
many pictures.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

# The other files of the benchmark lie beside this one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted import BATCH, Explained, load, sample_of

from benchmarks.planted_cells import AUDITED, HELD_OUT, Cell, cells_of, drawn
from explainer.audit import colours
from explainer.audit.cues import Cue
from explainer.audit.evidence import ClassEvidence
from explainer.audit.examination import LEAST_IMAGES
from explainer.audit.interventions import Images, Laboratory
from explainer.audit.overlays import Overlay
from explainer.audit.sample import ClassSample
from explainer.audit.stock import Stock
from explainer.audit.trial import Trial
from explainer.audit.verdict import Finding, findings
from explainer.audit.verdicts import ACCUSED
from jobs.audit_plan import ClassImages, class_images, recipients

out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Known:
    """A plant that took: its model, its class and what it is; whether the audit flagged it."""

    model: int
    target: int
    cell: Cell
    was_flagged: bool


def main() -> None:
    """Test every plant that took, and print what the audit and its tests make of it."""
    parser = argparse.ArgumentParser(description="Test planted shortcuts as known cues.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", type=int, default=[*HELD_OUT])
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [pair for n in options.models for pair in test_model(options.out, n)]
    judged = {each.evidence.target: each for each in findings([each for _, each in pairs])}
    found = [(known, judged[evidence.target]) for known, evidence in pairs]
    print_table(found)


def test_model(folder: Path, number: int) -> list[tuple[Known, ClassEvidence]]:
    """The evidence on each plant of a model that took. Targets are numbered over all models."""
    model, cells = load(folder / str(number)), cells_of(number)
    explained = Explained.of(model, cells, AUDITED)
    data, saliency, candidates = explained.data, explained.saliency, explained.candidates
    pool, lab = data.recipients(recipients(candidates)), Laboratory(model, BATCH)
    known = {each.target: each for each in took(folder, number)}
    pairs = []
    for images in class_images(candidates):
        if images.target not in known:
            continue
        rivals = data.recipients(images.rivals)
        groups = [pool.apart_from(rivals), rivals.images]
        groups[0] = groups[0].only(groups[0].classes != images.target)
        if min(map(len, groups)) < LEAST_IMAGES:  # as examine does
            groups = [Images.joined(groups)]
        sample = sample_of(data, saliency, images)
        evidence = test(lab, sample, groups, images, known[images.target])
        evidence = replace(evidence, target=len(saliency) * number + images.target)
        pairs.append((known[images.target], evidence))
    return pairs


def took(folder: Path, number: int) -> list[Known]:
    """The plants of a model that took, by its audit."""
    lines = json.loads((folder / f"audit-{number}.json").read_text())
    cells = cells_of(number)
    return [
        Known(number, line["target"], cells[line["target"]], line["verdict"] in ACCUSED)
        for line in lines
        if line["plant"] and line["took"]
    ]


def test(
    lab: Laboratory, sample: ClassSample, groups: list[Images], images: ClassImages, known: Known
) -> ClassEvidence:
    """The evidence on a class whose only cue is its plant."""
    trial = Trial(
        lab, Stock(sample, groups, torch.Generator().manual_seed(known.target)), known.target
    )
    drawings = drawn(known.target, range(AUDITED), known.cell)
    masks = torch.from_numpy(np.stack([each.planted for each in drawings]))
    masks = masks[images.rows - known.target * AUDITED]
    cue = cue_of(known, sample, masks, Images.joined(groups))
    empty = ClassEvidence(known.target, len(sample), int(sample.explained.sum()), 1, 0)
    return replace(empty, cues=(trial.of(cue),))


def cue_of(known: Known, sample: ClassSample, masks: Tensor, others: Images) -> Cue:
    """A plant as the audit would describe it; `masks` [images, height, width] are its pixels."""
    carriers = masks.flatten(1).any(1)
    kind = known.cell.plant.kind
    side = colours.Side.of(sample, others.crops)
    cast = colours.cast(sample, side) if kind == "tint" else None
    if cast is not None:
        return replace(cast, likeness=carriers.float(), threshold=0.5)
    # Of a picture without the plant the mask is a carrier's: there it is tested what filling costs.
    held = torch.nonzero(carriers).flatten()
    every = torch.arange(len(masks))
    masks = masks[torch.where(carriers, every, held[every % len(held)])]
    cue = Cue(
        kind="texture" if kind == "texture" else "content",
        origin="known",
        likeness=carriers.float(),
        threshold=0.5,
        masks=masks,
        places=torch.zeros(len(masks), 2),
        is_fixed=kind not in ("sticker", "texture"),
    )
    if kind != "watermark":
        return cue
    marked = sample.crops[carriers & sample.discovery]
    return replace(cue, overlay=Overlay.between(marked, others.crops))


def print_table(found: list[tuple[Known, Finding]]) -> None:
    """One line a plant, and how many of them are flagged."""
    out.print("| artefact | size | rate | the audit | its tests, of the known plant | why |")
    out.print("|---|---|---|---|---|---|")
    for known, finding in sorted(found, key=lambda pair: str(pair[0].cell)):
        plant, flagged = known.cell.plant, "flagged" if known.was_flagged else "missed"
        what = f"| {plant.kind} | {plant.size} | {known.cell.rate:.0%} | {flagged}"
        out.print(f"{what} | {finding.verdict} | {finding.reason} |", markup=False)
    audit = sum(known.was_flagged for known, _ in found)
    known_flagged = sum(finding.verdict in ACCUSED for _, finding in found)
    out.print(f"\nflagged: {audit} of {len(found)} by the audit, {known_flagged} where known")


if __name__ == "__main__":
    main()
