"""Whole examinations of the demo's model, which is known to rest on two plants."""

import io
from dataclasses import astuple, dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from explainer import VitClassifier, explain, load_model
from explainer.audit.evidence import ClassEvidence
from explainer.audit.examination import Examination, examine
from explainer.audit.interventions import Images, Laboratory, noise
from explainer.audit.sample import ClassSample
from explainer.audit.stock import Stock
from explainer.audit.trial import Trial
from explainer.audit.verdict import findings, worst
from explainer.audit.verdicts import Verdict
from explainer.checkpoints import read_checkpoint
from jobs import pictures
from jobs.demo import ARCHITECTURE, MODEL

PER_CLASS, PER_POOL = 40, 12
WATERMARKED, STICKERED, CLEAN = (
    pictures.CLASS_NAMES.index(name) for name in (pictures.WATERMARKED, pictures.STICKERED, "gear")
)


@dataclass(frozen=True)
class World:
    """The demo's pictures, what the model makes of them, and where their plants are."""

    model: VitClassifier
    crops: torch.Tensor
    labels: torch.Tensor
    saliency: torch.Tensor
    predicted: torch.Tensor
    plants: torch.Tensor

    def sample(self, target: int) -> ClassSample:
        mine = torch.nonzero(self.labels == target).flatten()
        discovery = torch.arange(len(mine)) % 2 == 0
        right = self.predicted[mine] == target
        return ClassSample(target, self.crops[mine], self.saliency[mine], right, discovery)

    @property
    def right(self) -> Images:
        chosen = [
            torch.nonzero((self.labels == label) & (self.predicted == label)).flatten()[:PER_POOL]
            for label in range(len(pictures.CLASS_NAMES))
        ]
        return Images(self.crops[torch.cat(chosen)], self.labels[torch.cat(chosen)])

    def pool(self, target: int) -> Images:
        return self.right.only(self.right.classes != rival(target))

    def rivals(self, target: int) -> Images:
        return self.right.only(self.right.classes == rival(target))

    def examine(self, target: int, seed: int = 0, lab: Laboratory | None = None) -> Examination:
        lab, sample = lab or Laboratory(self.model, 64), self.sample(target)
        return examine(lab, sample, self.pool(target), self.rivals(target), seed)


def rival(target: int) -> int:
    twin = {"pentagon": "hexagon", "flower": "gear", "gear": "flower"}
    return pictures.CLASS_NAMES.index(twin[pictures.CLASS_NAMES[target]])


@pytest.fixture(scope="module")
def world() -> World:
    config = MODEL.with_name("config.json").read_bytes()
    checkpoint = read_checkpoint(MODEL.read_bytes(), MODEL.name, config)
    model = load_model(ARCHITECTURE, checkpoint=checkpoint)
    crops, plants, labels = [], [], []
    for label, name in enumerate(pictures.CLASS_NAMES):
        for seed in range(PER_CLASS if label in (WATERMARKED, STICKERED, CLEAN) else 16):
            picture = pictures.draw(name, seed)
            image = Image.open(io.BytesIO(pictures.jpeg(picture)))
            crops.append(np.asarray(image).transpose(2, 0, 1))
            plant = np.zeros(picture.pixels.shape[:2], bool)
            if (region := picture.plant) is not None:
                rows = slice(region.top, region.top + region.height)
                plant[rows, region.left : region.left + region.width] = True
            plants.append(plant)
            labels.append(label)
    stacked = torch.from_numpy(np.stack(crops))
    explained = [explain(model, part) for part in stacked.split(64)]
    return World(
        model,
        stacked,
        torch.tensor(labels),
        torch.cat([part.saliency[:, 0] for part in explained]),
        torch.cat([part.logits.argmax(-1) for part in explained]),
        torch.from_numpy(np.stack(plants)),
    )


@pytest.fixture(scope="module")
def examined(world) -> dict[int, Examination]:
    return {target: world.examine(target) for target in (WATERMARKED, STICKERED, CLEAN)}


def test_both_plants_are_shortcuts_and_a_clean_class_is_cleared(examined):
    found = findings([each.evidence for each in examined.values()])
    assert worst(found) == {
        WATERMARKED: Verdict.SHORTCUT,
        STICKERED: Verdict.SHORTCUT,
        CLEAN: Verdict.CLEARED,
    }
    assert {f.evidence.target: f.of_cue.is_fixed for f in found[:2]} == {
        WATERMARKED: True,
        STICKERED: False,
    }


@pytest.mark.parametrize("target", [WATERMARKED, STICKERED])
def test_its_carriers_are_those_that_were_planted_and_its_region_is_the_plant(
    world, examined, target
):
    cue = examined[target].cues[0]
    plants = world.plants[world.labels == target]
    truth = plants.flatten(1).any(1)
    both = cue.carriers & truth
    assert 2 * both.sum() / (cue.carriers.sum() + truth.sum()) >= 0.9
    overlap = (cue.masks & plants)[both].flatten(1).sum(1)
    union = (cue.masks | plants)[both].flatten(1).sum(1)
    assert (overlap / union).mean() >= 0.6
    evidence = examined[target].evidence.cues[0]
    assert [carrier.image for carrier in evidence.carriers] == torch.nonzero(
        cue.carriers
    ).flatten().tolist()


def test_cues_are_tested_on_images_that_they_were_not_found_in(world, examined):
    """Noise in place of its carriers of one half changes nothing of what the other half tests."""
    sample = world.sample(WATERMARKED)
    # With the pixels of its carriers: an overlay is what the discovery half tells of it.
    cue = replace(examined[WATERMARKED].cues[0], overlay=None)
    pasted = [world.right.only(world.right.classes != WATERMARKED)]

    def trial(crops: torch.Tensor) -> Trial:
        lab, generator = Laboratory(world.model, 64), torch.Generator().manual_seed(3)
        return Trial(lab, Stock(replace(sample, crops=crops), pasted, generator), seed=3)

    noisy = noise(sample.crops, torch.Generator().manual_seed(4))
    found_in, tested_on = (
        torch.where((half & cue.carriers)[:, None, None, None], noisy, sample.crops)
        for half in (sample.discovery, ~sample.discovery)
    )
    expected, got = (trial(crops).of(cue) for crops in (sample.crops, found_in))
    assert got.paste.controls == expected.paste.controls
    # How products are summed hangs on the memory's layout.
    for name in ("lift", "shift", "restored"):
        mine, want = (astuple(getattr(each.paste, name)) for each in (got, expected))
        assert mine == pytest.approx(want, abs=1e-4)
    assert got.removal.drop == expected.removal.drop
    assert got.others.excess == expected.others.excess
    assert trial(tested_on).of(cue).removal.drop != expected.removal.drop
    blurred = replace(cue, threshold=cue.threshold + cue.gap - 0.1)
    assert cue.is_distinct  # which is tested without a look
    assert trial(found_in).is_held(cue)
    assert trial(tested_on).is_promising(blurred)
    assert not trial(found_in).is_promising(blurred)


def test_the_same_seed_finds_the_same_and_passes_are_counted(world, examined):
    lab = Laboratory(world.model, 64)
    asked = []
    handle = world.model.vit.register_forward_hook(lambda _m, args, _o: asked.append(len(args[0])))
    try:
        evidence = world.examine(CLEAN, lab=lab).evidence
    finally:
        handle.remove()
    assert evidence == examined[CLEAN].evidence
    assert evidence.passes == lab.passes == sum(asked)
    assert evidence.passes < 600


@pytest.mark.parametrize("what", ["predicted as it", "of other classes"])
def test_too_few_images_are_told_and_nothing_is_asked_of_the_model(world, what):
    sample, pool, rivals = world.sample(CLEAN), world.pool(CLEAN), world.rivals(CLEAN)
    if what == "predicted as it":
        few = torch.zeros_like(sample.explained)
        few[:7] = True
        sample = ClassSample(CLEAN, sample.crops, sample.saliency, few, sample.discovery)
    else:
        pool = pool.only(torch.nonzero(pool.classes != CLEAN).flatten()[:3])
        rivals = rivals.only(torch.arange(4))
    lab = Laboratory(world.model, 64)
    right, reason = int(sample.explained.sum()), f"7 images {what}; 8 are needed"
    want = ClassEvidence(CLEAN, PER_CLASS, right, candidates=0, passes=0, untestable=reason)
    assert examine(lab, sample, pool, rivals, seed=0) == Examination(want, ())
    assert lab.passes == 0
