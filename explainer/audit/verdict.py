"""Verdicts on cues and classes, and what a cue costs: plain rules over the criteria.

See criteria.py for what each asks, and for its thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from explainer.audit.criteria import (
    LEAST_LIFT,
    LEAST_RIGHT,
    MOST_Q,
    fall_short,
    gain_little,
    is_alone,
    is_cleared_by_others,
    is_distinct,
    is_lost,
    is_missed,
    is_needed,
    is_part_of_the_class,
    is_sufficient,
    is_told_by_log_odds,
    is_unsure,
    stays_unsure,
)
from explainer.audit.evidence import ClassEvidence, CueEvidence, Paste, Removal
from explainer.audit.significance import benjamini_hochberg
from explainer.audit.verdicts import ACCUSED, Verdict, worst_of

# A moving cue on so large a share of a class may well be what the class is.
OBJECT_SHARE = 0.9
PART_OF_THE_CLASS = (
    "carriers without it are right far more seldom than the class's other images, or these lose as "
    "much at its places: it is part of what the class is"
)
TOO_FEW = "too few carriers to tell it from an object that some images show alike"
GAIN_LITTLE = "the class's other images are hardly more often right that are given it"


@dataclass(frozen=True)
class Finding:
    """A verdict on a class, or on one of its cues, and why.

    `severity`: the share of the class's images that are right only with the cue, and would not be
    lost to the filling alone, as its other images tell where they can. `accuracy_without`
    is what the class's accuracy would be without the cue. A class without cues has neither, nor has
    a cue that was not pasted and removed.
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

    @property
    def rank(self) -> float:
        """What findings of one verdict are ordered by, the largest first.

        No verdict rests on how far colours tell a class apart, and none on how distinct a cue is
        alone; but of what no test accuses that is where something that none was made of may be.
        """
        if self.verdict in ACCUSED:
            return self.severity
        gap = self.of_cue.gap if self.of_cue and is_distinct(self.of_cue) else 0.0
        return self.severity + max(0.0, self.evidence.apart - 0.5, gap)


def findings(classes: Sequence[ClassEvidence]) -> list[Finding]:
    """Verdicts on all cues of all classes, and on classes without one; the worst come first.

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
    return sorted(found, key=lambda f: (order.index(f.verdict), -f.rank, f.evidence.target))


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
    if cue.others and cue.paste is None and is_cleared_by_others(cue):
        reason = PART_OF_THE_CLASS if fall_short(cue, cue.others) else TOO_FEW
        return replace(finding, reason=reason)
    if cue.paste is None or cue.removal is None or q_value is None:
        reason = "too few images carry it to test it on others than it was found in"
        reason = TOO_FEW if stays_unsure(cue) else reason
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
    if not is_needed(cue, removal) or not is_sufficient(cue, paste, q_value):
        return Verdict.CLEARED, _weak(paste, removal, q_value)
    if cue.others and gain_little(cue, cue.others, removal):
        return Verdict.CLEARED, GAIN_LITTLE
    return Verdict.CONTEXT, "the colours of its images raise it in others, and it needs them"


def _on_content(
    cue: CueEvidence, paste: Paste, removal: Removal, q_value: float
) -> tuple[Verdict, str]:
    """The rules, in the order in which they apply."""
    needed = is_needed(cue, removal)
    if not is_sufficient(cue, paste, q_value) or not (needed or paste.lift.low > LEAST_LIFT):
        return Verdict.CLEARED, _weak(paste, removal, q_value)
    if is_part_of_the_class(cue, paste, removal):
        is_little = cue.is_of_whole and cue.others and gain_little(cue, cue.others, removal)
        return Verdict.CLEARED, GAIN_LITTLE if is_little else PART_OF_THE_CLASS
    if cue.others and is_unsure(cue, cue.others) and not is_alone(cue, paste, removal):
        return Verdict.CLEARED, TOO_FEW
    if not needed:
        return Verdict.COMPACT_CUE, "it is sufficient, but its carriers do without it"
    if not cue.is_fixed and (cue.others is None or cue.carrier_share.high >= OBJECT_SHARE):
        return Verdict.COMPACT_CUE, (
            f"{cue.carrier_share.value:.0%} of the class hold it, at varying places: it may be "
            "the object"
        )
    place = "at the same place" if cue.is_fixed else "at varying places"
    return Verdict.SHORTCUT, f"the same {cue.kind} {place} is sufficient, and its carriers need it"


RULES = {
    "content": _on_content,
    "texture": _on_content,
    "background": _on_background,
    "colours": _on_colours,
}


def _weak(paste: Paste, removal: Removal, q_value: float) -> str:
    gained = paste.gained
    in_class = "" if gained is None else f", {gained.low:.2f} in the class's other images"
    in_all = "" if paste.pooled is None else f", {paste.pooled.low:.2f} in all"
    return (
        f"removing it loses {removal.drop.value:.2f} of its carriers, at least "
        f"{removal.drop.low:.2f}, and log-odds of at least {removal.cost.low:.2f}; pasting it "
        f"gains at least {paste.shift.low:.2f} in other images{in_class} and "
        f"{paste.restored.low:.2f} where it was{in_all} (q = {q_value:.2g}), and flips at least "
        f"{paste.lift.low:.2f}: too little"
    )


def _severity(cue: CueEvidence, paste: Paste, removal: Removal) -> float:
    accuracy, others = cue.accuracy_of_carriers.value, cue.others
    lost = accuracy * removal.drop.value
    if others and not is_lost(removal) and is_missed(cue, removal):
        lost = accuracy * others.excess.value
    if others is None or others.right < LEAST_RIGHT or is_alone(cue, paste, removal):
        return cue.carrier_share.value * max(0.0, lost)
    if not is_told_by_log_odds(cue, others, removal):
        lost = min(lost, others.excess.value * (1.0 if cue.is_of_whole else accuracy))
    return cue.carrier_share.value * max(0.0, lost)


def _accuracy_without(cue: CueEvidence) -> float:
    share = cue.carrier_share.value
    kept = 0.0 if cue.removal is None else cue.removal.without
    return (
        1 - share
    ) * cue.accuracy_of_others.value + share * cue.accuracy_of_carriers.value * kept
