"""What an audit says beside what was planted, for benchmarks/planted.py.

A plant took where the model loses TOOK of accuracy on the same pictures without it.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from train_demo import predicted

from benchmarks.planted_cells import TEST_PER_CLASS, TOOK, Cell, pixels_of
from benchmarks.planted_pictures import sample
from explainer import VitClassifier
from explainer.audit.evidence import ClassEvidence, CueEvidence
from explainer.audit.verdict import Finding, worst
from explainer.audit.verdicts import ACCUSED

# Least share of a token that a plant covers where it counts as the plant's.
COVERED = 0.25


def compared(evidence: ClassEvidence, judged: list[Finding], planted: Tensor) -> dict[str, Any]:
    """What the audit says of a class, beside where its plant is, [pictures, cells]."""
    return {
        "target": evidence.target,
        "verdict": str(worst(judged)[evidence.target]),
        "score": max(2 * (each.verdict in ACCUSED) + each.rank for each in judged),
        "cues": [compared_cue(each, cue, planted) for each in judged if (cue := each.of_cue)],
    } | {name: getattr(evidence, name) for name in ("candidates", "passes", "explained")}


def compared_cue(finding: Finding, cue: CueEvidence, planted: Tensor) -> dict[str, Any]:
    """A cue, and how well its carriers and their cells agree with the plant's [images, cells]."""
    held, cells = torch.zeros(len(planted), dtype=torch.bool), torch.zeros_like(planted) > 0
    for carrier in cue.carriers:
        held[carrier.image] = True
        cells[carrier.image, list(carrier.cells)] = True
    truth, true_cells = planted.amax(1) > 0, planted >= COVERED
    both = held & truth
    common, either = (cells & true_cells)[both].sum(1), (cells | true_cells)[both].sum(1)
    return {
        "verdict": str(finding.verdict),
        "severity": finding.severity,
        "origin": cue.origin,
        "kind": cue.kind,
        "is_fixed": cue.is_fixed,
        "carriers": len(cue.carriers),
        "q": finding.q_value,
        "lift": None if cue.paste is None else asdict(cue.paste.lift),
        "shift": None if cue.paste is None else asdict(cue.paste.shift),
        "restored": None if cue.paste is None else asdict(cue.paste.restored),
        "drop": None if cue.removal is None else asdict(cue.removal.drop),
        "cost": None if cue.removal is None else asdict(cue.removal.cost),
        "others": None if cue.others is None else asdict(cue.others),
        "f1": 2 * int(both.sum()) / max(1, int(held.sum() + truth.sum())),
        "iou": float((common / either.clamp_min(1)).mean()) if both.any() else None,
    }


def plant_in_map(saliency: Tensor, planted: Tensor) -> float | None:
    """Share of a plant's tokens among a map's top tenth, or of that where the plant is larger.

    Over carriers of a class's pictures [pictures, cells]; None without any. Confounder sensitivity
    in the sense of Sun et al. 2023.
    """
    carriers = planted.amax(1) > 0
    if not carriers.any():
        return None
    maps, truth = saliency[carriers], planted[carriers] >= COVERED
    count = maps.shape[1] // 10
    top = torch.zeros_like(truth).scatter_(1, maps.topk(count).indices, value=True)
    size = truth.sum(1).clamp(1, count)
    return float(((top & truth).sum(1) / size).mean())


def plant_of(model: VitClassifier, index: int, cell: Cell | None) -> dict[str, Any]:
    """What was planted in a class, and whether it took: accuracy with it and without it."""
    if cell is None:
        return {"plant": None}
    shares = {}
    for name, plant in (("with", cell.plant), ("without", None)):
        samples = [sample(index, seed, plant) for seed in range(TEST_PER_CLASS)]
        crops = pixels_of(samples)
        shares[name] = float((predicted(model.vit, crops) == index).float().mean())
    took = shares["with"] - shares["without"] >= TOOK
    return {"plant": asdict(cell.plant), "rate": cell.rate, "accuracy": shares, "took": took}
