"""Examine one class: find cues on half of its images, then test each on the other half.

What is found on the images that it was looked for in would always look strong; so no image of the
class is tested with what it was found by.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from explainer.audit import colours, content, cues
from explainer.audit.crossing import crossed
from explainer.audit.cues import BACKGROUND, Cue
from explainer.audit.evidence import ClassEvidence
from explainer.audit.growth import Gallery
from explainer.audit.interventions import Images, Laboratory
from explainer.audit.marks import mark
from explainer.audit.proposals import Proposer
from explainer.audit.sample import ClassSample
from explainer.audit.stock import Stock
from explainer.audit.textures import texture
from explainer.audit.trial import Trial

# Images of a class, or of other classes, with which nothing can be said.
LEAST_IMAGES = 8
# Of the content's cues so many are looked at, on discovery, and so many are tested: of those that
# were looked at one at least, beside what needs no look.
MOST_PROMISING, MOST_CUES = 4, 2
FINER = 2  # marks are looked for at so many times the pixels of windows


@dataclass(frozen=True)
class Examination:
    """The evidence on a class, and its cues with their masks, in the same order."""

    evidence: ClassEvidence
    cues: tuple[Cue, ...]


def examine(
    lab: Laboratory, sample: ClassSample, pool: Images, rivals: Images, seed: int
) -> Examination:
    """Find a class's cues and test them; the same for the same seed.

    `pool` holds rightly predicted images of many classes, in which those of this class are ignored;
    `rivals` some of the classes that it is mistaken for: a cue may tell it from these alone. No
    image is in both.
    """
    others = pool.only(pool.classes != sample.target)
    explained = int(sample.explained.sum())
    evidence = ClassEvidence(sample.target, len(sample), explained, candidates=0, passes=0)
    for count, what in (
        (explained, "predicted as it"),
        (len(others) + len(rivals), "of other classes"),
    ):
        if count < LEAST_IMAGES:
            reason = f"{count} images {what}; {LEAST_IMAGES} are needed"
            return Examination(replace(evidence, untestable=reason), ())
    before, generator = lab.passes, torch.Generator().manual_seed(seed)
    groups = [others, rivals]
    if min(len(group) for group in groups) < LEAST_IMAGES:
        groups = [Images.joined(groups)]  # as many of each would repeat a few
    strangers = Images.joined(groups)
    side = colours.Side.of(sample, strangers.crops)
    gallery = _gallery(sample, strangers, content.pixels_of_a_cell(sample.grid))
    found = _candidates(lab, sample, strangers, side, gallery, generator)
    trial = Trial(lab, Stock(sample, groups, generator), seed)
    sure = unlooked(trial, found)
    rest = promising(trial, found, sure)
    chosen = [crossed(cue, sample, gallery) for cue in sure] + rest
    tested = tuple(trial.of(cue) for cue in chosen)
    passes = lab.passes - before
    told = replace(evidence, candidates=len(found), passes=passes, apart=side.apart(sample))
    return Examination(replace(told, cues=tested), tuple(chosen))


def _candidates(
    lab: Laboratory,
    sample: ClassSample,
    strangers: Images,
    side: colours.Side,
    gallery: Gallery,
    generator: torch.Generator,
) -> list[Cue]:
    """Cues of content, best first, the background, and what of whole images tells the class."""
    seeds = Proposer(lab, sample, generator).seeds(gallery.mine, gallery.theirs)
    whole = (texture(sample, strangers.crops), colours.cast(sample, side))
    of_whole = [cues.background(sample), *(each for each in whole if each is not None)]
    placed = mark(_gallery(sample, strangers, FINER * gallery.cell))
    marked = None if placed is None else cues.of_mark(sample, placed, strangers.crops)
    return [*cues.found(sample, gallery, seeds, marked), *of_whole]


def _gallery(sample: ClassSample, strangers: Images, cell: int) -> Gallery:
    mine, theirs = (
        content.reduced(crops, sample.grid, cell) for crops in (sample.crops, strangers.crops)
    )
    return Gallery(mine, theirs, sample.discovery, cell)


def unlooked(trial: Trial, found: Sequence[Cue]) -> list[Cue]:
    """What is tested without a look: the best distinct cue, and the best that many images hold."""
    held = [cue for cue in found if cue.kind == "content" and trial.is_held(cue)]
    distinct = next((cue for cue in held if cue.is_distinct), None)
    common = next((cue for cue in held if trial.is_common(cue)), None)
    return [cue for cue in held if cue is distinct or cue is common]


def promising(trial: Trial, found: Sequence[Cue], sure: Sequence[Cue]) -> list[Cue]:
    """What shows an effect on discovery beside what is sure to be tested: the best of the content.

    Or else the background. What whole images hold is looked at first, unless it is common, and few
    have any; it takes the place of a second of content, of which what is distinct comes first.
    Nothing that is told rests on this look: it saves testing what does nothing. A background that
    holds such a cue has its effect, too.
    """
    whole = [cue for cue in found if cue.is_of_whole]
    of_whole = [cue for cue in whole if trial.is_common(cue) or trial.is_promising(cue)]
    of_content = [cue for cue in found if cue.kind == "content"]
    first = sorted(of_content, key=lambda cue: not cue.is_distinct)[:MOST_PROMISING]
    others = (cue for cue in first if not any(cue is each for each in sure))
    most = max(1, MOST_CUES - len(of_whole) - len(sure))
    kept = list(islice((cue for cue in others if trial.is_promising(cue)), most))
    is_told = kept or any(trial.is_promising(cue) for cue in sure)
    behind = [] if is_told else [cue for cue in found if cue.kind == BACKGROUND]
    return kept + [cue for cue in behind if trial.is_promising(cue)] + of_whole
