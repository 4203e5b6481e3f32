"""When a cue has been tested on enough images.

The first tests settle only what is far from a threshold, as Haybittle and Peto let a trial end
early: their strict thresholds add few false alarms.
"""

from explainer.audit.criteria import (
    LEAST_DROP,
    LEAST_LIFT,
    LEAST_RIGHT,
    fall_short,
    is_distinct,
    is_little,
    is_part_of_the_class,
    is_rare,
    is_unsure,
    lose_as_much,
)
from explainer.audit.evidence import CueEvidence, Others, Paste, Removal

# What is so far below a threshold, as a part of it, is settled, and what is above it with a smaller
# p-value, so that it is below the thresholds among hundreds of cues, and a hundred rare ones.
FAR_BELOW, BEYOND_DOUBT = 0.5, 1e-4


def is_open(cue: CueEvidence) -> bool:
    """Whether tests on more images may change the verdict on a cue that was tested."""
    if cue.paste is None or cue.removal is None:
        return False
    is_far = _is_far_below(cue, cue.paste, cue.removal)
    return not (is_far or _is_beyond_doubt(cue, cue.paste, cue.removal))


def _is_far_below(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    """Whether the cue is hardly needed and flips few, raises nothing, or goes with the object."""
    if not _may_be_needed(cue, removal) and paste.lift.value < LEAST_LIFT:
        return True
    if max(each.value for each in paste.shifts) <= 0:
        return True
    if cue.others is None or cue.kind == "background":
        return False
    too_little = _is_too_little(cue, cue.others, removal) and cue.others.right >= LEAST_RIGHT
    may_be_alone = cue.moves and paste.lift.value > LEAST_LIFT
    # Where the filling costs the others less all the same, a few images contradict each other.
    is_cut = fall_short(cue, cue.others) and cue.others.excess.low <= 0
    return is_cut or (too_little and not may_be_alone)


def _is_too_little(cue: CueEvidence, others: Others, removal: Removal) -> bool:
    """Whether what these lose less, or gain, is little; of some cues a little is enough."""
    if cue.is_of_whole or is_distinct(cue):
        return others.excess.high < LEAST_DROP
    return is_little(others.excess, removal)


def _may_be_needed(cue: CueEvidence, removal: Removal) -> bool:
    """Whether it is half needed; or the others lose less, where more than a removal tells it."""
    if removal.drop.value >= FAR_BELOW * LEAST_DROP or removal.cost.low > 0:
        return True
    if cue.others is None or is_rare(cue):
        return False
    return cue.others.excess.value >= LEAST_DROP or cue.others.excess.low > 0


def _is_beyond_doubt(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    if removal.drop.low < LEAST_DROP or max(each.low for each in paste.shifts) <= 0:
        return False
    if paste.p_value >= BEYOND_DOUBT:
        return False
    if cue.kind == "background":
        return paste.lift.low > LEAST_LIFT
    if cue.others is None or cue.others.excess.low < LEAST_DROP:
        return cue.others is None
    if cue.kind == "colours":
        return not lose_as_much(cue, cue.others, removal)
    return not (is_unsure(cue, cue.others) or is_part_of_the_class(cue, paste, removal))
