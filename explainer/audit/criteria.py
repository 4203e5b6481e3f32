"""What the evidence about a cue says, criterion by criterion; their thresholds are in one place.

A cue is *needed* where its carriers are lost without it, and *sufficient* where pasting it raises
the class beyond its controls, in other classes' images or in carriers that lost it. Parts of an
object are both, too. What tells a shortcut is that many images share the same pixels, and that the
class's other images, which are without, are right no more often than its carriers are once it is
gone: the object is still there, and does not help. Where an object is cut, carriers fall far below
the others.
"""

from explainer.audit.evidence import CueEvidence, Others, Paste, Removal
from explainer.audit.growth import LEAST_GAP
from explainer.audit.significance import Estimate

LEAST_LIFT, LEAST_DROP = 0.10, 0.10
LIFT_ALONE = 0.25  # a moving cue that flips so many more images needs no object beside it
LEAST_RIGHT = 8  # so many of a class's other images, at least, tell what filling costs them
# Filling a cue's places is to cost the class's other images less than carriers by half of what
# these lose, and significantly or by so much, or all that they lose where that is less.
ENOUGH_EXCESS = 0.25
LITTLE_EXCESS = 0.25  # less than such a part of it is little
LEAST_EXCESS_COST = 0.5  # or so much more log-odds, and half of what these lose
# Of hundreds of windows some are alike by chance in a few images; where fewer than this share of
# the class are carriers, or fewer images, the excess is to be significant, or that carriers are
# right more often than the others, and q smaller.
RARE_SHARE, RARE_CARRIERS = 0.25, 30
MOST_Q, MOST_Q_OF_RARE = 0.05, 0.01
# And carriers that lost it are to be as right as the others, surely but for so much: few images
# that show an object alike lose it all the same.
MOST_DEFICIT_OF_RARE = 0.25
NARROWER = 0.1  # which an interval's end may become with more images
# Fewer carriers are to be right more often with it, too, and the excess is to be so large, surely:
# twenty are alike too easily.
SELDOM_SHARE, LEAST_EXCESS_OF_SELDOM = 0.15, 0.2
# Carriers that are less right than the others by so much of what they lost have lost an object.
OBJECT_DEFICIT, LEAST_DEFICIT = 0.75, 0.15
SHORT = 0.1  # or by so much, significantly: of many images less is significant, too


def is_needed(cue: CueEvidence, removal: Removal) -> bool:
    """Whether carriers lose so much without it, significantly, beyond what as much else costs.

    Or beyond what the same costs the class's other images.
    """
    return is_lost(removal) or is_missed(cue, removal)


def is_lost(removal: Removal) -> bool:
    """Whether removing it costs carriers more than as much else does."""
    return removal.drop.value >= LEAST_DROP and max(removal.drop.low, removal.cost.low) > 0


def is_missed(cue: CueEvidence, removal: Removal) -> bool:
    """Whether filling its places costs carriers more than the class's other images, significantly.

    Or whether these are right so much more often with their colours. As much else may lie on the
    object, which the cue does not, and other colours may change it. Half of what is wanted, of
    content, or a significant loss is to show beside it all the same, since carriers may differ from
    the others in more than the cue; and these are to be no more right than they.
    """
    others = cue.others
    if others is None or cue.kind not in ("content", "colours") or is_rare(cue):
        return False
    if others.right < LEAST_RIGHT:
        return False
    is_half = cue.kind == "content" and removal.drop.value >= LEAST_DROP / 2
    is_beside = is_half or max(removal.drop.low, removal.cost.low) > 0
    costs = others.excess_cost.low if others.excess_cost else 0.0
    is_more = others.excess.value >= LEAST_DROP and max(others.excess.low, costs) > 0
    return is_beside and is_more and others.deficit.low <= 0


def is_sufficient(cue: CueEvidence, paste: Paste, q_value: float) -> bool:
    """Whether pasting it raises the class beyond every control, significantly among all cues."""
    most_q = MOST_Q_OF_RARE if is_rare(cue) else MOST_Q
    return max(each.low for each in paste.shifts) > 0 and q_value < most_q


def is_rare(cue: CueEvidence) -> bool:
    """Whether few images hold it, and not distinctly: they may be alike by chance."""
    are_few = cue.carrier_share.value < RARE_SHARE or has_few_carriers(cue)
    return are_few and not is_distinct(cue)


def has_few_carriers(cue: CueEvidence) -> bool:
    """Whether too few images hold it to tell by their number."""
    return round(cue.carrier_share.value * cue.carrier_share.of) < RARE_CARRIERS


def is_distinct(cue: CueEvidence) -> bool:
    """Whether an image either holds it or does not: see Cue."""
    return cue.gap >= LEAST_GAP


def is_part_of_the_class(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    """Whether the class's other images tell that the object goes with the cue.

    They are right more often than carriers that lost it, significantly (see fall_short) or by most
    of what the carriers lose, which of a distinct cue of many carriers is to be significant; or
    the same places, filled, cost them as much. Content that moves may lie on the object, which
    filling damages too: it is none of it where it alone makes other classes' images the class.
    """
    others = cue.others
    if others is None:
        return False
    lost = cue.accuracy_of_carriers.value * removal.drop.value
    is_most = others.deficit.value > max(LEAST_DEFICIT, OBJECT_DEFICIT * lost)
    return (
        fall_short(cue, others)
        or (is_most and (others.deficit.low > 0 or not is_distinct(cue) or has_few_carriers(cue)))
        or (lose_as_much(cue, others, removal) and not is_alone(cue, paste, removal))
    )


def fall_short(cue: CueEvidence, others: Others) -> bool:
    """Whether carriers that lost it are right significantly and notably less often than the others.

    That is not asked of what lies all over an image, which is taken from carriers around their own
    object, and from the others around another's; and what is distinct is no object that was cut by
    a little.
    """
    is_told = others.deficit.low > 0 and others.deficit.value >= SHORT
    return is_told and not (cue.is_of_whole or is_distinct(cue))


def is_alone(cue: CueEvidence, paste: Paste, removal: Removal) -> bool:
    """Whether it is needed, moves, and makes the class of other images, without any object."""
    return cue.moves and is_needed(cue, removal) and paste.lift.low > LIFT_ALONE


def lose_as_much(cue: CueEvidence, others: Others, removal: Removal) -> bool:
    """Whether the class's other images, filled at the same places, lose about what carriers do.

    What is distinct has no object in it that they could lose: that they surely lose less is enough.
    Of what whole images hold: whether they gain little where they are given it.
    """
    if cue.is_of_whole:
        return gain_little(cue, others, removal)
    if costs_more(cue, others, removal) or (is_distinct(cue) and lose_less(others, removal)):
        return False
    if is_rare(cue) and others.excess.low <= 0 and not helps(cue):
        return True
    drop = max(LEAST_DROP, removal.drop.value)
    enough = 0.0 if others.excess.low > 0 else min(ENOUGH_EXCESS, drop)
    return others.right >= LEAST_RIGHT and others.excess.value < max(drop / 2, enough)


def lose_less(others: Others, removal: Removal) -> bool:
    """Whether the filling costs the class's other images less than carriers, significantly.

    In shares, or in log-odds where shares say so, too, if not surely: log-odds alone tell how sure
    the model was of carriers before.
    """
    costs = others.excess_cost.low if others.excess_cost else 0.0
    enough = max(LEAST_DROP, LITTLE_EXCESS * removal.drop.value)
    return others.excess.low > 0 or (costs > 0 and others.excess.value >= enough)


def gain_little(cue: CueEvidence, others: Others, removal: Removal) -> bool:
    """Whether the class's other images gain nothing by the cue, surely, or little.

    They are all others, right or not; so little is of what all carriers lose.
    """
    lost = cue.accuracy_of_carriers.value * max(LEAST_DROP, removal.drop.value)
    return others.excess.low <= 0 or others.excess.value < LITTLE_EXCESS * lost


def is_unsure(cue: CueEvidence, others: Others) -> bool:
    """Whether few carriers leave open if it is an object that some images show alike.

    Of what whole images hold the others' gain is to be sure in any case.
    """
    if cue.is_of_whole:
        return False
    is_sure = others.deficit.high < MOST_DEFICIT_OF_RARE and not stays_unsure(cue)
    if cue.carrier_share.value < SELDOM_SHARE:
        is_sure &= others.excess.low > LEAST_EXCESS_OF_SELDOM
    return is_rare(cue) and not is_sure


def stays_unsure(cue: CueEvidence) -> bool:
    """Whether carriers are so few, and no more right than the others, that no test would tell."""
    is_seldom = is_rare(cue) and cue.carrier_share.value < SELDOM_SHARE
    return cue.kind == "content" and is_seldom and not helps(cue)


def is_cleared_by_others(cue: CueEvidence) -> bool:
    """Whether the class's other images clear a cue, whatever its pastes and removals would show."""
    others = cue.others
    if others is None or cue.kind != "content":
        return False
    return fall_short(cue, others) or (cue.is_fixed and is_unsure(cue, others))


def may_become_sure(cue: CueEvidence) -> bool:
    """Whether more of the class's other images may not clear a cue that the first of them clear.

    Carriers stay as few: three times as many others make an interval a fifth narrower. Where the
    filling costs the others less all the same, a few images contradict each other.
    """
    others = cue.others
    if others is None:
        return False
    is_near = others.deficit.high < MOST_DEFICIT_OF_RARE + NARROWER
    return is_near or (fall_short(cue, others) and others.excess.low > 0)


def helps(cue: CueEvidence) -> bool:
    """Whether carriers are right more often than the class's other images, significantly."""
    return cue.accuracy_of_carriers.low > cue.accuracy_of_others.high


def costs_more(cue: CueEvidence, others: Others, removal: Removal) -> bool:
    """Whether the filling costs carriers more log-odds, by most of what they lose, than the others.

    Shares are to say so, too, if not so clearly: where it takes all from both, log-odds tell only
    how sure the model was of either. Of rare cues shares alone tell: a few images that hold an
    object alike were surer of it.
    """
    if is_rare(cue) or others.excess_cost is None or others.right < LEAST_RIGHT:
        return False
    if cue.is_of_whole:
        return False  # of these it is no cost
    enough = max(LEAST_EXCESS_COST, removal.cost.value / 2)
    return (
        others.excess_cost.low > 0
        and others.excess_cost.value >= enough
        and not is_little(others.excess, removal)
    )


def is_told_by_log_odds(cue: CueEvidence, others: Others, removal: Removal) -> bool:
    """Whether that the filling costs the others less shows in log-odds rather than in shares."""
    by_little = is_distinct(cue) and others.excess.low <= 0 and lose_less(others, removal)
    return by_little or costs_more(cue, others, removal)


def is_little(excess: Estimate, removal: Removal) -> bool:
    """Whether an excess is hardly any of what carriers lose."""
    return excess.value < LITTLE_EXCESS * max(LEAST_DROP, removal.drop.value)
