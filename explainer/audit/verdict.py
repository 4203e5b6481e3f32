"""What the evidence about a cue says, and what the cue costs: plain rules, thresholds in one place.

A cue is *needed* where its carriers are lost without it, and *sufficient* where pasting it raises
the class beyond its controls, in other classes' images or in carriers that lost it. Parts of an
object are both, too. What tells a shortcut is that many images share the same pixels, and that the
class's other images, which are without, are right no more often than its carriers are once it is
gone: the object is still there, and does not help. Where an object is cut, carriers fall far below
the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from explainer.audit.evidence import ClassEvidence, CueEvidence, Others, Paste, Removal
from explainer.audit.significance import Estimate, benjamini_hochberg
from explainer.audit.verdicts import Verdict, worst_of

LEAST_LIFT, LEAST_DROP = 0.10, 0.10
MOST_Q = 0.05
LIFT_ALONE = 0.25  # a moving cue that flips so many more images needs no object beside it
LEAST_RIGHT = 8  # so many of a class's other images, at least, tell what filling costs them
# Filling a cue's places is to cost the class's other images less than carriers by half of what
# these lose, and significantly or by so much, or all that they lose where that is less.
ENOUGH_EXCESS = 0.25
LEAST_EXCESS_COST = 0.5  # or so much more log-odds, and half of what these lose
# Of hundreds of windows some are alike by chance in a few images; where fewer than this share of
# the class are carriers, or fewer images, the excess is to be significant, or that carriers are
# right more often than the others, and q smaller.
RARE_SHARE, RARE_CARRIERS, MOST_Q_OF_RARE = 0.25, 30, 0.01
# And carriers that lost it are to be as right as the others, surely but for so much, or the excess
# to be so large, surely: few images that show an object alike lose it all the same.
MOST_DEFICIT_OF_RARE, LEAST_EXCESS_OF_RARE = 0.25, 0.2
# The first tests leave open what is not so far below a threshold, or above it: a part of the
# threshold, or of what filling the places is to cost; a p-value, of rare cues a smaller one.
FAR_BELOW, LITTLE_EXCESS, BEYOND_DOUBT, BEYOND_DOUBT_OF_RARE = 0.5, 0.25, 1e-3, 1e-4
# Carriers that are less right than the others by so much of what they lost have lost an object.
OBJECT_DEFICIT, LEAST_DEFICIT = 0.75, 0.15
# A moving cue on so large a share of a class may well be what the class is.
OBJECT_SHARE = 0.9


@dataclass(frozen=True)
class Finding:
    """A verdict on a class, or on one of its cues, and why.

    `severity`: the share of the class's images that are right only with the cue, and would not be
    lost to the filling alone, as its other images tell where they can. `accuracy_without`
    is what the class's accuracy would be without the cue. A class without cues has neither.
    """

    evidence: ClassEvidence
    cue: int | None
    verdict: Verdict
    reason: str
    q_value: float | None = None
    severity: float = 0.0
    accuracy_without: float | None = None

    @property
    def of_cue(self) -> CueEvidence | None:
        """The evidence on the cue, where the finding is about one."""
        return None if self.cue is None else self.evidence.cues[self.cue]


def findings(classes: Sequence[ClassEvidence]) -> list[Finding]:
    """Verdicts on all cues of all classes, and on classes without one; the severest come first.

    q-values are over all cues that were tested, in all of the classes (Benjamini and Hochberg).
    """
    p_of = {
        (evidence.target, index): cue.paste.p_value
        for evidence in classes
        for index, cue in enumerate(evidence.cues)
        if cue.paste is not None
    }
    q_of = dict(zip(p_of, benjamini_hochberg(list(p_of.values())), strict=True))
    found = []
    for evidence in classes:
        found += [
            _on_cue(evidence, index, q_of.get((evidence.target, index)))
            for index in range(len(evidence.cues))
        ] or [_without_cue(evidence)]
    order = list(Verdict)
    return sorted(found, key=lambda f: (order.index(f.verdict), -f.severity, f.evidence.target))


def worst(found: Sequence[Finding]) -> dict[int, Verdict]:
    """The worst verdict on each class."""
    return worst_of((f.evidence.target, f.cue, f.verdict) for f in found)


def _without_cue(evidence: ClassEvidence) -> Finding:
    if evidence.untestable is not None:
        return Finding(evidence, None, Verdict.UNTESTABLE, evidence.untestable)
    reason = f"none of {evidence.candidates} candidates has an effect at a first look"
    return Finding(evidence, None, Verdict.CLEARED, reason)


def _on_cue(evidence: ClassEvidence, index: int, q_value: float | None) -> Finding:
    cue = evidence.cues[index]
    finding = Finding(evidence, index, Verdict.CLEARED, "", q_value)
    if cue.paste is None or cue.removal is None or q_value is None:
        reason = "too few images carry it to test it on others than it was found in"
        return replace(finding, verdict=Verdict.UNTESTABLE, reason=reason)
    finding = replace(
        finding,
        severity=_severity(cue, cue.paste, cue.removal),
        accuracy_without=_accuracy_without(cue),
    )
    verdict, reason = RULES[cue.kind](cue, cue.paste, cue.removal, q_value)
    return replace(finding, verdict=verdict, reason=reason)


def _on_background(
    cue: CueEvidence, paste: Paste, removal: Removal, q_value: float
) -> tuple[Verdict, str]:
    if paste.lift.low <= LEAST_LIFT or q_value >= MOST_Q or removal.drop.low <= 0:
        return Verdict.CLEARED, _weak(paste, removal, q_value)
    return Verdict.CONTEXT, "its background flips other classes' images, and it needs it"


def _on_colours(
    cue: CueEvidence, paste: Paste, removal: Removal, q_value: float
) -> tuple[Verdict, str]:
    if not _is_needed(removal) or not _is_sufficient(paste, q_value, MOST_Q):
        return Verdict.CLEARED, _weak(paste, removal, q_value)
    return Verdict.CONTEXT, "the colours of its images raise it in others, and it needs them"


def _on_content(
    cue: CueEvidence, paste: Paste, removal: Removal, q_value: float
) -> tuple[Verdict, str]:
    """The rules, in the order in which they apply."""
    is_needed = _is_needed(removal)
    most_q = MOST_Q_OF_RARE if _is_rare(cue) else MOST_Q
    if not _is_sufficient(paste, q_value, most_q) or not (is_needed or paste.lift.low > LEAST_LIFT):
        return Verdict.CLEARED, _weak(paste, removal, q_value)
    if _is_part_of_the_class(cue, paste, removal):
        return Verdict.CLEARED, (
            "carriers without it are right far more seldom than the class's other images, or these "
            "lose as much at its places: it is part of what the class is"
        )
    if cue.others and _is_unsure(cue, cue.others) and not _is_alone(cue, paste, removal):
        return Verdict.CLEARED, (
            "too few carriers to show that without it they are as right as the class's other images"
        )
    if not is_needed:
        return Verdict.COMPACT_CUE, "it is sufficient, but its carriers do without it"
    if not cue.is_fixed and cue.carrier_share.high >= OBJECT_SHARE:
        return Verdict.COMPACT_CUE, (
            f"{cue.carrier_share.value:.0%} of the class hold it, at varying places: it may be "
            "the object"
        )
    place = "at the same place" if cue.is_fixed else "at varying places"
    return Verdict.SHORTCUT, f"the same content {place} is sufficient, and its carriers need it"


RULES = {"content": _on_content, "background": _on_background, "colours": _on_colours}


def is_open(cue: CueEvidence) -> bool:
    """Whether tests on more images may change the verdict on a cue that was tested."""
    if cue.paste is None or cue.removal is None:
        return False
    is_far = _is_far_below(cue, cue.paste, cue.removal)
    return not (is_far or _is_beyond_doubt(cue, cue.paste, cue.removal))


def is_cleared_by_others(cue: CueEvidence) -> bool:
    """Whether the class's other images clear a cue, whatever more of its carriers would show."""
    others = cue.others
    if others is None or cue.kind != "content":
        return False
    return others.deficit.low > 0 or (cue.is_fixed and _is_unsure(cue, others))


def _is_far_below(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    """Whether the cue is hardly needed and flips few, raises nothing, or goes with the object."""
    is_needed = removal.drop.value >= FAR_BELOW * LEAST_DROP or removal.cost.low > 0
    if not is_needed and paste.lift.value < LEAST_LIFT:
        return True
    if max(paste.shift.value, paste.restored.value) <= 0:
        return True
    if cue.others is None or cue.kind != "content":
        return False
    too_little = _is_little(cue.others.excess, removal) and cue.others.right >= LEAST_RIGHT
    may_be_alone = not cue.is_fixed and paste.lift.value > LEAST_LIFT
    return cue.others.deficit.low > 0 or (too_little and not may_be_alone)


def _is_beyond_doubt(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    if removal.drop.low < LEAST_DROP or max(paste.shift.low, paste.restored.low) <= 0:
        return False
    if paste.p_value >= (BEYOND_DOUBT_OF_RARE if _is_rare(cue) else BEYOND_DOUBT):
        return False
    if cue.kind != "content":
        return cue.kind != "background" or paste.lift.low > LEAST_LIFT
    if cue.others is None:
        return True
    if cue.others.excess.low < LEAST_DROP or _is_unsure(cue, cue.others):
        return False
    return not _is_part_of_the_class(cue, paste, removal)


def _is_needed(removal: Removal) -> bool:
    return removal.drop.value >= LEAST_DROP and max(removal.drop.low, removal.cost.low) > 0


def _is_sufficient(paste: Paste, q_value: float, most_q: float) -> bool:
    return max(paste.shift.low, paste.restored.low) > 0 and q_value < most_q


def _is_rare(cue: CueEvidence) -> bool:
    share = cue.carrier_share
    return share.value < RARE_SHARE or round(share.value * share.of) < RARE_CARRIERS


def _is_part_of_the_class(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    """Whether the class's other images tell that the object goes with the cue.

    They are right more often than carriers that lost it, significantly or by most of what the
    carriers lose; or the same places, filled, cost them as much. Content that moves may lie on the
    object, which filling damages too: it is none of it where it alone makes other classes' images
    the class.
    """
    others = cue.others
    if others is None:
        return False
    lost = cue.accuracy_of_carriers.value * removal.drop.value
    return (
        others.deficit.low > 0
        or others.deficit.value > max(LEAST_DEFICIT, OBJECT_DEFICIT * lost)
        or (_lose_as_much(cue, others, removal) and not _is_alone(cue, paste, removal))
    )


def _is_alone(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    return not cue.is_fixed and _is_needed(removal) and paste.lift.low > LIFT_ALONE


def _lose_as_much(cue: CueEvidence, others: Others, removal: Removal) -> bool:
    if _costs_more(others, removal):
        return False
    helps = cue.accuracy_of_carriers.low > cue.accuracy_of_others.high
    if _is_rare(cue) and others.excess.low <= 0 and not helps:
        return True
    drop = max(LEAST_DROP, removal.drop.value)
    enough = 0.0 if others.excess.low > 0 else min(ENOUGH_EXCESS, drop)
    return others.right >= LEAST_RIGHT and others.excess.value < max(drop / 2, enough)


def _is_unsure(cue: CueEvidence, others: Others) -> bool:
    """Whether few carriers leave open if they are as right without the cue as the others."""
    is_alike = others.deficit.high < MOST_DEFICIT_OF_RARE
    return _is_rare(cue) and not is_alike and others.excess.low <= LEAST_EXCESS_OF_RARE


def _costs_more(others: Others, removal: Removal) -> bool:
    """Whether the filling costs carriers more log-odds, by most of what they lose, than the others.

    Shares are to say so, too, if not so clearly: where it takes all from both, log-odds tell only
    how sure the model was of either.
    """
    if others.excess_cost is None or others.right < LEAST_RIGHT:
        return False
    enough = max(LEAST_EXCESS_COST, removal.cost.value / 2)
    return (
        others.excess_cost.low > 0
        and others.excess_cost.value >= enough
        and not _is_little(others.excess, removal)
    )


def _is_little(excess: Estimate, removal: Removal) -> bool:
    return excess.value < LITTLE_EXCESS * max(LEAST_DROP, removal.drop.value)


def _weak(paste: Paste, removal: Removal, q_value: float) -> str:
    return (
        f"removing it loses {removal.drop.value:.2f} of its carriers, at least "
        f"{removal.drop.low:.2f}, and log-odds of at least {removal.cost.low:.2f}; pasting it "
        f"gains at least {paste.shift.low:.2f} in other images and {paste.restored.low:.2f} where "
        f"it was (q = {q_value:.2g}), and flips at least {paste.lift.low:.2f}: too little"
    )


def _severity(cue: CueEvidence, paste: Paste, removal: Removal) -> float:
    lost, others = removal.drop.value, cue.others
    is_told = others and not _is_alone(cue, paste, removal) and not _costs_more(others, removal)
    if others and others.right >= LEAST_RIGHT and is_told:
        lost = min(lost, others.excess.value)
    return cue.carrier_share.value * cue.accuracy_of_carriers.value * max(0.0, lost)


def _accuracy_without(cue: CueEvidence) -> float:
    share = cue.carrier_share.value
    kept = 0.0 if cue.removal is None else cue.removal.without
    return (
        1 - share
    ) * cue.accuracy_of_others.value + share * cue.accuracy_of_carriers.value * kept
