"""The rules of verdicts, one by one, on evidence made by hand."""

import json
from dataclasses import asdict, replace
from typing import Literal

import pytest

from explainer.audit.criteria import is_cleared_by_others, may_become_sure, stays_unsure
from explainer.audit.evidence import Carrier, ClassEvidence, CueEvidence, Others, Paste, Removal
from explainer.audit.interventions import Control
from explainer.audit.significance import Estimate
from explainer.audit.stopping import is_open
from explainer.audit.verdict import Finding, findings, worst
from explainer.audit.verdicts import Verdict

SHORTCUT = CueEvidence(
    kind="content",
    origin="saliency",
    is_fixed=False,
    area=0.06,
    threshold=0.6,
    carriers=(Carrier(3, 0.9, (10, 11)), Carrier(7, 0.8, (2,))),
    carrier_share=Estimate(0.5, 0.4, 0.6, 100),
    accuracy_of_carriers=Estimate(1.0, 0.9, 1.0, 50),
    accuracy_of_others=Estimate(0.6, 0.5, 0.7, 50),
    paste=Paste(
        flips=0.9,
        controls=dict.fromkeys(Control, 0.1),
        lift=Estimate(0.8, 0.6, 0.9, 96),
        shift=Estimate(4.0, 3.0, 5.0, 96),
        restored=Estimate(1.0, -1.0, 3.0, 48),
        p_value=1e-4,
        donors=6,
    ),
    removal=Removal(0.5, 1.0, Estimate(0.5, 0.3, 0.7, 32), Estimate(2.0, 1.0, 3.0, 32), 32),
    others=Others(
        Estimate(0.1, -0.1, 0.3, 100),
        Estimate(0.4, 0.2, 0.6, 50),
        Estimate(0.0, -1.0, 1.0, 50),
        right=30,
    ),
)


def judged(*cues: CueEvidence, **changes: object) -> Finding:
    evidence = replace(ClassEvidence(0, 100, 90, 8, 500, cues), **changes)
    return findings([evidence])[0]


def with_paste(**changes: object) -> CueEvidence:
    return replace(SHORTCUT, paste=replace(SHORTCUT.paste, **changes))


def with_others(**changes: object) -> CueEvidence:
    return replace(SHORTCUT, others=replace(SHORTCUT.others, **changes))


def about(value: float) -> Estimate:
    return Estimate(value, value - 0.2, value + 0.2, 50)


def rarely_alone(**changes: object) -> CueEvidence:
    """A cue that flips other classes' images, but not so many that it needs no object."""
    paste = replace(SHORTCUT.paste, lift=Estimate(0.5, 0.25, 0.9, 96))
    return replace(with_others(**changes), paste=paste)


ALIKE = Estimate(
    0.0, -0.24, 0.24, 100
)  # as little as carriers' deficit is to be where they are few
MORE_COST = Estimate(1.0, 0.1, 2.0, 50)
MAYBE_MORE = Estimate(0.4, 0.0, 0.6, 50)  # an excess, but perhaps none
UNSURE = "too few carriers to tell it from an object that some images show alike"
PART = (
    "carriers without it are right far more seldom than the class's other images, or these lose as "
    "much at its places: it is part of what the class is"
)


def test_sufficient_needed_content_on_part_of_a_class_is_a_shortcut():
    finding = judged(SHORTCUT)
    assert finding.verdict is Verdict.SHORTCUT
    assert finding.reason == (
        "the same content at varying places is sufficient, and its carriers need it"
    )
    assert finding.severity == pytest.approx(0.5 * 0.5)
    assert finding.accuracy_without == pytest.approx(0.5 * 1.0 * 0.5 + 0.5 * 0.6)
    assert judged(replace(SHORTCUT, is_fixed=True)).reason.startswith("the same content at the")


def removed(drop: float, cost: float) -> Removal:
    """`drop` is the mean, `cost` the lower end."""
    return Removal(0.9, 1.0, Estimate(drop, -0.2, 0.2, 32), Estimate(cost + 1, cost, 3.0, 32), 32)


def test_severity_is_what_carriers_lose_beyond_the_filling_times_their_share():
    placed = replace(SHORTCUT, is_fixed=True)  # of 0.5 the filling alone loses 0.1
    assert judged(placed).severity == pytest.approx(0.5 * 0.4)
    for others in (replace(SHORTCUT.others, right=7), None):  # too few to tell
        assert judged(replace(placed, others=others)).severity == pytest.approx(0.5 * 0.5)
    half_right = replace(placed, accuracy_of_carriers=Estimate(0.5, 0.4, 0.6, 50))
    assert judged(half_right).severity == pytest.approx(0.5 * 0.5 * 0.4)
    # What moves may lie on the object, which the filling damages in other images, too.
    assert judged(with_others(excess=about(0.0))).severity == pytest.approx(0.5 * 0.5)


@pytest.mark.parametrize(
    ("cue", "verdict", "reason"),
    [
        (
            with_paste(shift=Estimate(0.5, 0.0, 0.9, 96)),
            Verdict.CLEARED,
            "removing it loses 0.50 of its carriers, at least 0.30, and log-odds of at least 1.00; "
            "pasting it gains at least 0.00 in other images and -1.00 where it was (q = 0.0001), "
            "and flips at least 0.60: too little",
        ),
        (
            with_paste(shift=Estimate(0.5, 0.0, 0.9, 96), restored=Estimate(1.0, 0.1, 2.0, 48)),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            with_paste(p_value=0.05),
            Verdict.CLEARED,
            "removing it loses 0.50 of its carriers, at least 0.30, and log-odds of at least 1.00; "
            "pasting it gains at least 3.00 in other images and -1.00 where it was (q = 0.05), "
            "and flips at least 0.60: too little",
        ),
        (
            with_paste(lift=Estimate(0.0, -0.1, 0.1, 96)),
            Verdict.SHORTCUT,  # what tells a class only together with its shape flips nothing
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(with_others(excess=MAYBE_MORE), removal=removed(drop=0.09, cost=1.0)),
            Verdict.COMPACT_CUE,
            "it is sufficient, but its carriers do without it",
        ),
        (
            replace(with_others(excess=MAYBE_MORE), removal=removed(drop=0.2, cost=0.0)),
            Verdict.COMPACT_CUE,
            "it is sufficient, but its carriers do without it",
        ),
        (
            replace(SHORTCUT, removal=removed(drop=0.05, cost=0.0)),  # but the others lose less
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(SHORTCUT, removal=removed(drop=0.1, cost=0.1), others=None),
            Verdict.COMPACT_CUE,  # with no other images, what moves may be the object
            f"{SHORTCUT.carrier_share.value:.0%} of the class hold it, at varying places: it may "
            "be the object",
        ),
        (
            replace(SHORTCUT, removal=removed(drop=0.1, cost=0.1), others=None, is_fixed=True),
            Verdict.SHORTCUT,
            "the same content at the same place is sufficient, and its carriers need it",
        ),
        (
            replace(
                with_paste(lift=Estimate(0.5, 0.1, 0.9, 96)),
                removal=removed(0.2, 0.0),
                others=replace(SHORTCUT.others, excess=MAYBE_MORE),
            ),
            Verdict.CLEARED,
            "removing it loses 0.20 of its carriers, at least -0.20, and log-odds of at least "
            "0.00; pasting it gains at least 3.00 in other images and -1.00 where it was "
            "(q = 0.0001), and flips at least 0.10: too little",
        ),
        (
            with_others(deficit=Estimate(0.2, 0.1, 0.6, 100)),
            Verdict.CLEARED,
            PART,
        ),
        (
            with_others(deficit=Estimate(0.38, -0.1, 0.6, 100)),  # carriers lose 0.5
            Verdict.CLEARED,
            PART,
        ),
        (
            with_others(deficit=Estimate(0.37, -0.1, 0.6, 100)),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(
                with_others(deficit=Estimate(0.16, -0.1, 0.6, 100)),
                removal=removed(drop=0.15, cost=1.0),
            ),
            Verdict.CLEARED,
            PART,
        ),
        (
            replace(
                with_others(deficit=Estimate(0.15, -0.1, 0.6, 100)),
                removal=removed(drop=0.15, cost=1.0),
            ),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            rarely_alone(excess=about(0.24)),  # carriers lose 0.5
            Verdict.CLEARED,
            PART,
        ),
        (
            replace(
                rarely_alone(excess=Estimate(0.24, 0.0, 0.4, 50)),
                removal=removed(drop=0.3, cost=1.0),
            ),
            Verdict.CLEARED,
            PART,
        ),
        (
            replace(  # significantly
                rarely_alone(excess=Estimate(0.16, 0.01, 0.3, 50)),
                removal=removed(drop=0.3, cost=1.0),
            ),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(
                rarely_alone(excess=Estimate(0.25, 0.0, 0.4, 50)),
                removal=removed(drop=0.3, cost=1.0),
            ),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(
                rarely_alone(excess=about(0.15)), removal=removed(drop=0.15, cost=1.0)
            ),  # all of it
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(  # few images may be alike by chance, so the excess is to be significant
                rarely_alone(excess=Estimate(0.4, 0.0, 0.7, 16), right=4),
                carrier_share=Estimate(0.24, 0.2, 0.3, 100),
                accuracy_of_others=Estimate(0.8, 0.7, 0.9, 50),
            ),
            Verdict.CLEARED,
            PART,
        ),
        (
            replace(
                rarely_alone(excess=Estimate(0.4, 0.0, 0.7, 16)),
                carrier_share=Estimate(0.48, 0.4, 0.6, 60),
                accuracy_of_others=Estimate(0.8, 0.7, 0.9, 50),
            ),
            Verdict.CLEARED,
            PART,
        ),
        (
            replace(  # or that carriers are right more often, as others are hardly ever
                rarely_alone(excess=Estimate(0.4, 0.0, 0.7, 16), right=4, deficit=ALIKE),
                carrier_share=Estimate(0.24, 0.2, 0.3, 100),
                accuracy_of_others=Estimate(0.79, 0.69, 0.89, 50),
            ),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(
                rarely_alone(excess=Estimate(0.4, 0.1, 0.7, 16), deficit=ALIKE),
                carrier_share=Estimate(0.24, 0.2, 0.3, 100),
            ),
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(  # where they may be right more seldom than the others by 0.25
                rarely_alone(excess=Estimate(0.4, 0.3, 0.7, 16), deficit=replace(ALIKE, high=0.25)),
                carrier_share=Estimate(0.24, 0.2, 0.3, 100),
                accuracy_of_others=Estimate(0.8, 0.7, 0.9, 50),
            ),
            Verdict.CLEARED,
            UNSURE,
        ),
        (
            replace(  # though carriers are right more often than these as they are, significantly
                rarely_alone(excess=Estimate(0.4, 0.2, 0.7, 16), deficit=replace(ALIKE, high=0.25)),
                carrier_share=Estimate(0.24, 0.2, 0.3, 100),
                accuracy_of_others=Estimate(0.79, 0.69, 0.89, 50),
            ),
            Verdict.CLEARED,
            UNSURE,
        ),
        (
            replace(with_others(excess=about(0.09)), removal=removed(drop=0.0, cost=1.0)),
            Verdict.CLEARED,  # an object's part, which flips other images as a sticker does
            PART,
        ),
        (
            with_others(excess=about(0.0)),  # but it flips other classes' images
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            rarely_alone(excess=about(0.0), right=7),  # too few to tell
            Verdict.SHORTCUT,
            "the same content at varying places is sufficient, and its carriers need it",
        ),
        (
            replace(SHORTCUT, carrier_share=Estimate(0.8, 0.7, 0.9, 100)),
            Verdict.COMPACT_CUE,
            "80% of the class hold it, at varying places: it may be the object",
        ),
        (
            replace(
                SHORTCUT, carrier_share=Estimate(1.0, 0.9, 1.0, 100), is_fixed=True, others=None
            ),
            Verdict.SHORTCUT,
            "the same content at the same place is sufficient, and its carriers need it",
        ),
        (
            replace(SHORTCUT, paste=None, removal=None, others=None),
            Verdict.UNTESTABLE,
            "too few images carry it to test it on others than it was found in",
        ),
    ],
)
def test_what_lacks_one_of_these_is_none(cue, verdict, reason):
    assert (judged(cue).verdict, judged(cue).reason) == (verdict, reason)


def in_log_odds(
    excess: float = 0.13, cost: Estimate | None = MORE_COST, **changes: object
) -> CueEvidence:
    """Carriers lose 0.5 and 2.0 log-odds; the filling costs the others less in these alone."""
    return rarely_alone(excess=about(excess), excess_cost=cost, **changes)


def rare(cue: CueEvidence, of_class: float = 0.24) -> CueEvidence:
    share, accuracy = Estimate(of_class, 0.1, 0.3, 100), Estimate(0.8, 0.7, 0.9, 50)
    return replace(cue, carrier_share=share, accuracy_of_others=accuracy)


def test_what_hardly_any_image_holds_is_to_show_in_all_ways():
    """Of forty carriers twenty are tested, and some object shows alike in as many by chance."""
    large = Estimate(0.5, 0.21, 0.7, 100)
    seen = replace(rare(rarely_alone(excess=large, deficit=ALIKE), 0.14),
                   accuracy_of_others=about(0.1))  # fmt: skip
    assert judged(seen).verdict is Verdict.SHORTCUT
    for cue in (
        replace(seen, others=replace(seen.others, excess=replace(large, low=0.2))),
        replace(seen, others=replace(seen.others, deficit=replace(ALIKE, high=0.25))),
        replace(seen, accuracy_of_others=Estimate(0.8, 0.7, 0.9, 50)),
    ):
        assert judged(cue).verdict is Verdict.CLEARED
        assert judged(cue).reason == UNSURE
        more = replace(cue, carrier_share=Estimate(0.15, 0.1, 0.2, 100))
        is_alike = cue.others.deficit.high < 0.25
        assert (judged(more).verdict is Verdict.SHORTCUT) == is_alike


@pytest.mark.parametrize(
    ("cue", "is_shortcut"),
    [
        (in_log_odds(), True),
        (in_log_odds(cost=None), False),
        (in_log_odds(cost=Estimate(0.9, 0.1, 2.0, 50)), False),  # less than half of 2.0
        (in_log_odds(cost=Estimate(1.5, 0.0, 3.0, 50)), False),
        (in_log_odds(excess=0.12), False),  # all are lost to the filling, carriers from higher up
        (in_log_odds(deficit=about(0.21)), False),
        (rare(in_log_odds(deficit=ALIKE)), False),  # of few carriers shares alone tell
        (replace(in_log_odds(cost=Estimate(0.49, 0.1, 2.0, 50)),
                 removal=removed(drop=0.5, cost=-0.5)), False),
    ],
)  # fmt: skip
def test_the_filling_may_cost_the_others_less_in_log_odds(cue, is_shortcut):
    assert (judged(cue).verdict is Verdict.SHORTCUT) == is_shortcut
    assert is_shortcut or judged(cue).reason == PART


def test_what_costs_more_log_odds_is_as_severe_as_what_its_carriers_lose():
    assert judged(in_log_odds()).severity == pytest.approx(0.5 * 0.5)
    assert judged(in_log_odds(cost=None)).severity == pytest.approx(0.5 * 0.13)


def test_few_carriers_that_leave_it_open_are_no_part_of_the_class():
    unsure = rarely_alone(excess=Estimate(0.6, 0.19, 0.8, 50), deficit=Estimate(0.0, -0.3, 0.3, 50))
    finding = judged(rare(unsure))
    assert finding.verdict is Verdict.CLEARED
    assert finding.reason == UNSURE
    assert judged(unsure).verdict is Verdict.SHORTCUT
    alone = replace(rare(unsure), paste=SHORTCUT.paste)
    assert judged(alone).verdict is Verdict.SHORTCUT


def test_colours_that_raise_the_class_and_are_needed_are_context():
    cast = replace(SHORTCUT, kind="colours", origin="colours", area=1.0)
    assert judged(cast).verdict is Verdict.CONTEXT
    assert judged(cast).reason == "the colours of its images raise it in others, and it needs them"
    little = replace(cast, removal=removed(0.09, 1.0))
    assert judged(little).verdict is Verdict.CONTEXT  # the others are right more often by 0.4
    gain_less = replace(cast.others, excess=Estimate(0.4, 0.0, 0.6, 50))
    assert judged(replace(little, others=gain_less)).verdict is Verdict.CLEARED
    few = replace(rare(cast), paste=replace(SHORTCUT.paste, p_value=0.02))
    assert judged(few).verdict is Verdict.CLEARED
    assert judged(replace(few, carrier_share=SHORTCUT.carrier_share)).verdict is Verdict.CONTEXT


@pytest.mark.parametrize("kind", ["colours", "texture"])
def test_what_the_other_images_are_given_and_gain_nothing_by_is_cleared(kind):
    def given(excess: Estimate, **changes: object) -> CueEvidence:
        cue = with_others(excess=excess, **changes)
        return replace(cue, kind=kind, origin=kind, area=1.0)

    told = {"colours": Verdict.CONTEXT, "texture": Verdict.SHORTCUT}
    lost = given(about(0.0))
    little = 0.25 * lost.accuracy_of_carriers.value * lost.removal.drop.value
    assert judged(given(Estimate(little, 0.01, 0.5, 50))).verdict is told[kind]
    for excess in (Estimate(0.24, 0.0, 0.5, 50), Estimate(little - 0.01, 0.01, 0.5, 50)):
        assert judged(given(excess)).verdict is Verdict.CLEARED
        assert judged(given(excess)).reason == (
            "the class's other images are hardly more often right that are given it"
        )
    alone = {"colours": Verdict.CONTEXT, "texture": Verdict.COMPACT_CUE}
    assert judged(replace(lost, others=None)).verdict is alone[kind]


@pytest.mark.parametrize("kind", ["colours", "texture"])
def test_what_all_other_images_gain_limits_the_severity_of_a_cue_of_whole_images(kind):
    """Right or not: so it is no share of those that are right."""
    gained = replace(with_others(excess=about(0.05)), kind=kind)
    assert judged(gained).severity == pytest.approx(0.5 * 0.05)
    plenty = replace(with_others(excess=about(0.9)), kind=kind)
    lost = plenty.accuracy_of_carriers.value * plenty.removal.drop.value
    assert judged(plenty).severity == pytest.approx(plenty.carrier_share.value * lost)


@pytest.mark.parametrize("carriers", [0.1, 0.24])
def test_what_is_distinct_is_not_alike_by_chance_however_few_hold_it(carriers):
    few = rare(rarely_alone(excess=Estimate(0.4, 0.0, 0.7, 50)), carriers)
    assert judged(few).verdict is Verdict.CLEARED
    assert judged(replace(few, gap=0.29)).verdict is Verdict.CLEARED
    assert judged(replace(few, gap=0.3)).verdict is Verdict.SHORTCUT


def test_a_distinct_cues_carriers_may_be_less_right_without_it_but_not_by_most_for_sure():
    lost = SHORTCUT.accuracy_of_carriers.value * SHORTCUT.removal.drop.value
    for deficit, low, gap, verdict in (
        (0.1, 0.01, 0.3, Verdict.SHORTCUT),
        (0.1, 0.01, 0.29, Verdict.CLEARED),
        (0.76 * lost, 0.01, 0.3, Verdict.CLEARED),
        (0.76 * lost, 0.0, 0.3, Verdict.SHORTCUT),
        (0.76 * lost, 0.0, 0.29, Verdict.CLEARED),
    ):
        less = with_others(deficit=Estimate(deficit, low, 0.5, 50), excess=about(0.4))
        assert judged(replace(less, gap=gap)).verdict is verdict
    few = replace(less, gap=0.3, carrier_share=Estimate(0.29, 0.2, 0.4, 100))
    assert judged(few).verdict is Verdict.CLEARED  # of few carriers nothing is significant


def needed_beside_others(drop: float = 0.05, **changes: object) -> CueEvidence:
    """Content that carriers hardly lose beyond as much else, but far more than the others."""
    weak = replace(SHORTCUT, removal=removed(drop=drop, cost=0.0))
    weak = replace(weak, paste=replace(weak.paste, lift=about(0.0)))
    more = Others(ALIKE, Estimate(0.3, 0.01, 0.5, 50), None, 8)
    return replace(weak, others=replace(more, **changes))


def cast_beside_others(cost: float = 0.1, **changes: object) -> CueEvidence:
    """Colours that carriers lose little by, and the others gain more by."""
    cast = replace(needed_beside_others(**changes), kind="colours")
    return replace(cast, removal=removed(drop=0.05, cost=cost))


@pytest.mark.parametrize(
    ("cue", "verdict"),
    [
        (needed_beside_others(), Verdict.SHORTCUT),
        (needed_beside_others(drop=0.04), Verdict.CLEARED),
        (needed_beside_others(right=7), Verdict.CLEARED),
        (needed_beside_others(excess=Estimate(0.3, 0.0, 0.5, 50)), Verdict.CLEARED),
        (needed_beside_others(excess=Estimate(0.09, 0.01, 0.5, 50)), Verdict.CLEARED),
        (needed_beside_others(excess=MAYBE_MORE, excess_cost=MORE_COST), Verdict.SHORTCUT),
        (needed_beside_others(excess=MAYBE_MORE, excess_cost=about(0.1)), Verdict.CLEARED),
        (needed_beside_others(drop=0.04, excess=about(0.3), right=30), Verdict.CLEARED),
        (
            replace(needed_beside_others(drop=0.04), removal=removed(drop=0.04, cost=0.1)),
            Verdict.SHORTCUT,
        ),
        (rare(needed_beside_others()), Verdict.CLEARED),
        (replace(rare(needed_beside_others()), gap=0.3), Verdict.SHORTCUT),
        # These are more right than carriers without the cue: they differ in more than that.
        (
            replace(needed_beside_others(deficit=Estimate(0.09, 0.01, 0.2, 99)), gap=0.3),
            Verdict.CLEARED,
        ),
        (replace(needed_beside_others(), kind="texture"), Verdict.CLEARED),  # it is what they gain
        (cast_beside_others(), Verdict.CONTEXT),
        (cast_beside_others(cost=0.0), Verdict.CLEARED),  # what few removals lose is no evidence
        (cast_beside_others(excess=Estimate(0.09, 0.01, 0.2, 99)), Verdict.CLEARED),
        (cast_beside_others(excess=Estimate(0.3, 0.0, 0.5, 99)), Verdict.CLEARED),
    ],
)
def test_that_content_is_needed_shows_beside_the_other_images_too(cue, verdict):
    assert judged(cue).verdict is verdict


def test_what_shows_beside_the_others_alone_is_as_severe_as_it_shows_there():
    assert judged(needed_beside_others()).severity == pytest.approx(0.5 * 0.3)
    lost = replace(needed_beside_others(), removal=SHORTCUT.removal)
    assert judged(replace(lost, others=None)).severity == pytest.approx(0.5 * 0.5)


def test_that_carriers_are_a_little_less_right_than_many_others_says_nothing():
    for deficit, verdict in ((0.09, Verdict.SHORTCUT), (0.1, Verdict.CLEARED)):
        cue = with_others(deficit=Estimate(deficit, 0.01, 0.2, 300))
        assert judged(cue).verdict is verdict


def test_the_reason_names_what_the_other_images_gain():
    cue = with_paste(shift=about(0.1), gained=Estimate(0.2, -0.12, 0.4, 90))
    assert "at least -0.10 in other images, -0.12 in the class's other images and -1.00 where" in (
        judged(cue).reason
    )


def test_that_the_others_surely_lose_less_is_enough_of_what_is_distinct():
    """Other classes' pixels around an image cost them nearly as much as its carriers."""
    for low, gap, verdict in (
        (0.01, 0.3, Verdict.SHORTCUT),
        (0.0, 0.3, Verdict.CLEARED),
        (0.01, 0.29, Verdict.CLEARED),
    ):
        less = rarely_alone(excess=Estimate(0.1, low, 0.2, 100))
        assert judged(replace(less, gap=gap)).verdict is verdict


@pytest.mark.parametrize(
    ("excess", "cost", "gap", "verdict"),
    [
        (0.13, 0.01, 0.3, Verdict.SHORTCUT),
        (0.12, 0.01, 0.3, Verdict.CLEARED),  # less than a quarter of the 0.5 that carriers lose
        (0.13, 0.0, 0.3, Verdict.CLEARED),
        (0.13, 0.01, 0.29, Verdict.CLEARED),
        (0.13, None, 0.3, Verdict.CLEARED),
    ],
)
def test_of_what_is_distinct_log_odds_tell_it_too_if_shares_do_not_contradict(
    excess, cost, gap, verdict
):
    less = rarely_alone(
        excess=Estimate(excess, -0.1, 0.3, 40),
        excess_cost=None if cost is None else Estimate(0.4, cost, 0.8, 40),
    )
    finding = judged(replace(less, gap=gap))
    assert finding.verdict is verdict
    if verdict is Verdict.SHORTCUT:  # severity does not rest on shares that were not significant
        assert finding.severity == pytest.approx(0.5 * 0.5)


def test_log_odds_tell_nothing_where_shares_say_less_than_a_tenth():
    for excess, verdict in ((0.1, Verdict.SHORTCUT), (0.09, Verdict.CLEARED)):
        less = rarely_alone(excess=Estimate(excess, -0.1, 0.3, 40), excess_cost=MORE_COST)
        small = replace(less, gap=0.3, removal=removed(drop=0.3, cost=2.1))
        assert judged(small).verdict is verdict


def test_what_the_other_images_gain_by_a_distinct_cue_is_a_return_too():
    weak = with_paste(shift=Estimate(0.5, 0.0, 0.9, 96))
    assert judged(weak).verdict is Verdict.CLEARED
    for low, verdict in ((0.1, Verdict.SHORTCUT), (0.0, Verdict.CLEARED)):
        gained = replace(weak.paste, gained=Estimate(0.5, low, 0.9, 120))
        assert judged(replace(weak, paste=gained)).verdict is verdict
        assert CueEvidence.of(json.loads(json.dumps(asdict(replace(weak, paste=gained))))) == (
            replace(weak, paste=gained)
        )


def test_of_what_is_cleared_distinct_cues_come_first():
    plain = replace(SHORTCUT, removal=removed(drop=0.0, cost=0.0), paste=with_paste(
        shift=about(-1.0), restored=about(-1.0)).paste)  # fmt: skip
    assert judged(plain).verdict is Verdict.CLEARED
    assert judged(replace(plain, gap=0.29)).rank == judged(plain).rank
    assert judged(replace(plain, gap=0.4)).rank == pytest.approx(judged(plain).severity + 0.4)
    assert judged(replace(SHORTCUT, gap=0.4)).rank == judged(SHORTCUT).severity


def test_a_textures_carriers_may_be_less_right_without_it_than_the_others_but_not_by_most():
    """It is taken from around the object, whose shape leaves others' objects less."""
    texture = replace(with_others(excess=about(0.4)), kind="texture", origin="spectrum")
    fewer = replace(texture.others, deficit=Estimate(0.2, 0.1, 0.3, 50))
    assert judged(replace(texture, others=fewer)).verdict is Verdict.SHORTCUT
    content = replace(texture, kind="content", others=fewer)
    assert judged(content).reason == PART
    lost = texture.accuracy_of_carriers.value * texture.removal.drop.value
    most = replace(fewer, deficit=about(0.76 * lost))
    assert judged(replace(texture, others=most)).reason == PART


def test_a_texture_is_a_shortcut_where_the_class_does_without_and_may_be_the_object_where_not():
    texture = replace(SHORTCUT, kind="texture", origin="spectrum", area=0.6)
    assert judged(texture).verdict is Verdict.SHORTCUT
    assert judged(texture).reason == (
        "the same texture at varying places is sufficient, and its carriers need it"
    )
    most = replace(texture, carrier_share=Estimate(0.95, 0.9, 0.97, 100), others=None)
    assert judged(most).verdict is Verdict.COMPACT_CUE
    # It covers most of an image, and so may the object that it is part of: alone it tells nothing.
    as_much = replace(SHORTCUT, others=replace(SHORTCUT.others, excess=about(0.1)))
    assert judged(as_much).verdict is Verdict.SHORTCUT
    assert judged(replace(as_much, kind="texture")).reason.startswith("the class's other images")


def test_a_background_that_flips_and_is_needed_is_context():
    behind = replace(SHORTCUT, kind="background", origin="background", area=0.7)
    assert judged(behind).verdict is Verdict.CONTEXT
    assert judged(behind).reason == "its background flips other classes' images, and it needs it"
    weak = replace(behind.paste, lift=Estimate(0.5, 0.1, 0.9, 96))
    for less in (replace(behind, paste=weak), replace(behind, removal=removed(0.2, 1.0))):
        assert judged(less).verdict is Verdict.CLEARED
        assert judged(less).reason.endswith("too little")


def placed(**changes: object) -> CueEvidence:
    """What lies at one place, as needed as it can be, with other tests' outcomes."""
    removal = Removal(0.5, 1.0, Estimate(0.5, 0.1, 0.7, 24), Estimate(2.0, 1.0, 3.0, 24), 24)
    sufficient = replace(SHORTCUT.paste, p_value=0.00009)
    return replace(SHORTCUT, is_fixed=True, **{"removal": removal, "paste": sufficient} | changes)


def others(deficit: float = 0.0, excess: float = 0.4, low: float = 0.1, right: int = 20) -> Others:
    """`low` is the excess's lower end; in log-odds there is none."""
    unlike = Estimate(0.0, -1.0, 1.0, 40)
    return Others(about(deficit), Estimate(excess, low, 0.9, 40), unlike, right)


def gain_nothing(deficit: float = 0.0, high: float = 0.09) -> Others:
    """Others that surely lose as much, or gain nothing by what they are given."""
    return replace(others(deficit=deficit), excess=Estimate(0.0, -0.1, high, 90))


def of_kind(kind: Literal["background", "texture", "colours"], **changes: object) -> CueEvidence:
    return replace(placed(**changes), kind=kind)


@pytest.mark.parametrize(
    ("cue", "is_left_open"),
    [
        (placed(), False),  # beyond doubt
        (placed(others=None), False),
        (placed(paste=replace(SHORTCUT.paste, p_value=0.0001)), True),
        (placed(paste=replace(SHORTCUT.paste, p_value=0.00009)), False),
        (placed(removal=removed(drop=0.3, cost=1.0)), True),
        (placed(others=others(excess=0.24)), True),  # of 0.5: a part of the class, by these
        (placed(others=others(low=0.0)), True),
        (placed(others=others(excess=0.13, low=-0.1)), True),
        (placed(others=others(excess=0.12, low=-0.1)), False),  # less than a quarter of 0.5
        (placed(others=replace(others(excess=0.12, low=-0.1),
                               excess_cost=Estimate(1.0, 0.1, 2.0, 40))), False),
        (placed(others=others(excess=0.12, low=-0.1, right=7)), True),
        (replace(placed(others=others(excess=-0.1, low=-0.3)), gap=0.3), True),  # up to 0.9
        (replace(placed(others=gain_nothing()), gap=0.3), False),
        (replace(placed(others=replace(gain_nothing(), right=7)), gap=0.3), True),
        (replace(placed(others=others(excess=0.12, low=-0.1)), is_fixed=False), True),
        (placed(others=others(deficit=0.2, excess=0.24)), True),
        (placed(others=others(deficit=0.21, excess=0.24, low=0.0)), False),  # significantly
        (placed(others=others(deficit=0.21, excess=0.24)), True),  # but these lose less, surely
        (placed(paste=replace(SHORTCUT.paste, shift=about(-1.0), restored=about(0.0))), False),
        (placed(removal=removed(drop=0.04, cost=0.0)), True),  # it flips others
        (placed(removal=removed(drop=0.04, cost=0.0), others=others(excess=0.09, low=-0.1),
                paste=replace(SHORTCUT.paste, lift=about(0.09))), False),
        (placed(removal=removed(drop=0.04, cost=0.0), others=others(excess=0.09, low=0.01),
                paste=replace(SHORTCUT.paste, lift=about(0.09))), True),  # but surely
        (replace(placed(removal=removed(drop=0.04, cost=0.0), others=others(0.0, 0.09, 0.01),
                        paste=replace(SHORTCUT.paste, lift=about(0.09))), gap=0.3), True),
        (placed(removal=removed(drop=0.04, cost=0.0),  # more than the others lose
                paste=replace(SHORTCUT.paste, lift=about(0.09))), True),
        (rare(placed(removal=removed(drop=0.04, cost=0.0), others=others(low=-0.1),
                     paste=replace(SHORTCUT.paste, lift=about(0.09)))), False),
        (placed(removal=removed(drop=0.04, cost=0.1),
                paste=replace(SHORTCUT.paste, lift=about(0.09))), True),
        (placed(removal=removed(drop=0.05, cost=0.0),
                paste=replace(SHORTCUT.paste, lift=about(0.09))), True),
        (placed(paste=None, removal=None, others=None), False),
        (placed(paste=replace(SHORTCUT.paste, p_value=0.00009,
                              shift=about(0.2), restored=about(0.2))), True),
        (placed(others=others(low=0.09)), True),
        (rare(placed()), True),  # a rare one wants more:
        (rare(placed(others=replace(others(), deficit=ALIKE))), False),  # as right as the others
        (of_kind("colours", others=gain_nothing(deficit=0.5)), False),
        (of_kind("colours", others=gain_nothing(high=0.1)), True),  # which may be enough
        (of_kind("colours"), False),
        (of_kind("colours", others=others(excess=0.24)), False),
        (of_kind("colours", others=others(excess=0.24, low=0.09)), True),
        (of_kind("colours", removal=removed(drop=0.3, cost=1.0)), True),
        (of_kind("colours", removal=removed(drop=0.3, cost=1.0),
                 others=gain_nothing()), False),
        (of_kind("texture", others=gain_nothing()), False),
        (of_kind("texture", others=gain_nothing(deficit=0.5)), False),
        (of_kind("background", others=others(excess=0.0, low=-1.0, right=0)), False),
        (of_kind("background", others=None,
                 paste=replace(SHORTCUT.paste, p_value=0.00009, lift=about(0.3))), True),
    ],
)  # fmt: skip
def test_what_is_far_from_every_threshold_is_tested_on_no_more_images(cue, is_left_open):
    assert is_open(cue) == is_left_open


@pytest.mark.parametrize(
    ("cue", "is_cleared"),
    [
        (placed(others=others(deficit=0.21)), True),  # significantly
        (placed(others=others(deficit=0.2, excess=0.0)), False),  # that depends on the removal
        (placed(others=None), False),
        (of_kind("background", others=others(deficit=0.5)), False),  # which asks no others
        (replace(placed(others=others(deficit=0.21)), is_fixed=False), True),
        (replace(rare(placed(others=others(deficit=0.1))), is_fixed=False), False),  # maybe alone
        (rare(placed(others=others(deficit=0.1))), True),
        (
            replace(
                rare(placed(others=others(deficit=0.1))), carrier_share=replace(about(0.26), of=200)
            ),
            False,
        ),
        (rare(placed(others=others(deficit=0.04))), False),
        (rare(placed(others=others(deficit=0.1, low=0.21))), True),
    ],
)
def test_what_the_others_clear_is_neither_pasted_nor_removed(cue, is_cleared):
    assert is_cleared_by_others(cue) == is_cleared
    assert not is_cleared or judged(cue).verdict is Verdict.CLEARED


@pytest.mark.parametrize(
    ("cue", "may_become"),
    [
        (placed(others=None), False),
        (rare(placed(others=others(deficit=0.14))), True),  # up to 0.34
        (rare(placed(others=others(deficit=0.15))), False),
        (placed(others=others(deficit=0.21, low=0.0)), False),  # cut, and no more is lost
        (placed(others=others(deficit=0.21, low=0.01)), True),
    ],
)
def test_more_of_the_others_are_asked_where_they_may_not_clear_it_after_all(cue, may_become):
    assert may_become_sure(cue) == may_become


def test_few_carriers_that_are_no_more_right_are_not_tested():
    few = replace(rare(SHORTCUT, 0.14), paste=None, removal=None, others=None)
    for high, reason in (
        (0.9, "too few images carry it to test it on others than it was found in"),
        (0.91, "too few carriers to tell it from an object that some images show alike"),
    ):
        held = replace(few, accuracy_of_others=Estimate(0.8, 0.7, high, 50),
                       accuracy_of_carriers=Estimate(0.95, 0.901, 1.0, 50))  # fmt: skip
        assert stays_unsure(held) == (high > 0.901)
        assert judged(held).verdict is Verdict.UNTESTABLE
        assert judged(held).reason == reason
    assert not stays_unsure(replace(held, gap=0.3))
    assert not stays_unsure(rare(held, 0.15))


def test_what_is_cleared_is_ordered_by_how_far_colours_tell_it_and_what_is_accused_is_not():
    def of(target: int, apart: float, *cues: CueEvidence) -> ClassEvidence:
        return ClassEvidence(target, 100, 90, 8, 500, cues, apart=apart)

    weak = replace(SHORTCUT, others=replace(SHORTCUT.others, deficit=Estimate(0.3, 0.1, 0.5, 99)))
    found = findings([of(0, 0.6), of(1, 0.9), of(2, 0.2), of(3, 0.5, weak), of(4, 1.0, SHORTCUT)])
    assert [f.evidence.target for f in found] == [4, 1, 3, 0, 2]
    assert [round(f.rank, 3) for f in found] == [0.25, 0.4, 0.25, 0.1, 0.0]
    assert found[0].rank == found[0].severity
    assert [f.verdict for f in found[1:]] == [Verdict.CLEARED] * 4


def test_a_class_without_cues_is_cleared_or_not_testable():
    cleared = judged(candidates=4)
    assert cleared.verdict is Verdict.CLEARED
    assert cleared.reason == "none of 4 candidates has an effect at a first look"
    untestable = judged(untestable="7 images predicted as it; 8 are needed")
    assert untestable.verdict is Verdict.UNTESTABLE
    assert untestable.reason == "7 images predicted as it; 8 are needed"


def test_one_lucky_cue_among_many_is_no_finding():
    lucky = with_paste(p_value=0.02)
    alone = findings([ClassEvidence(0, 100, 90, 8, 500, (lucky,))])
    assert alone[0].verdict is Verdict.SHORTCUT
    others = [ClassEvidence(i, 100, 90, 8, 500, (with_paste(p_value=0.5),)) for i in range(1, 9)]
    among = findings([ClassEvidence(0, 100, 90, 8, 500, (lucky,)), *others])
    assert {finding.verdict for finding in among} == {Verdict.CLEARED}
    assert among[0].q_value == pytest.approx(0.18)


@pytest.mark.parametrize(
    ("carriers", "p_value", "verdict"),
    [
        (Estimate(0.3, 0.2, 0.4, 100), 0.04, Verdict.SHORTCUT),
        (Estimate(30 / 104, 0.2, 0.4, 104), 0.04, Verdict.SHORTCUT),  # 29.999... by its product
        (Estimate(0.3, 0.2, 0.4, 90), 0.04, Verdict.CLEARED),
        (Estimate(0.2, 0.1, 0.3, 200), 0.04, Verdict.CLEARED),
        (Estimate(0.2, 0.1, 0.3, 200), 0.009, Verdict.SHORTCUT),
    ],
)
def test_what_few_images_hold_wants_a_smaller_q(carriers, p_value, verdict):
    assert judged(replace(with_paste(p_value=p_value), carrier_share=carriers)).verdict is verdict


def test_findings_are_ordered_and_a_class_is_as_bad_as_its_worst_cue():
    mild = replace(SHORTCUT, carrier_share=Estimate(0.1, 0.0, 0.2, 100))
    compact = replace(SHORTCUT, removal=removed(drop=0.0, cost=0.0))
    classes = [
        ClassEvidence(0, 100, 90, 0, 100),
        ClassEvidence(1, 100, 90, 8, 500, (compact, mild)),
        ClassEvidence(2, 100, 90, 8, 500, (SHORTCUT,)),
    ]
    found = findings(classes)
    assert [(f.evidence.target, f.cue) for f in found] == [(2, 0), (1, 1), (1, 0), (0, None)]
    assert found[0].of_cue == SHORTCUT
    assert found[3].of_cue is None
    assert worst(found) == {
        0: Verdict.CLEARED,
        1: Verdict.SHORTCUT,
        2: Verdict.SHORTCUT,
    }
    rare = replace(SHORTCUT, paste=None, removal=None)
    assert worst(findings([ClassEvidence(3, 100, 90, 8, 500, (rare,))])) == {3: Verdict.CLEARED}


def test_evidence_becomes_plain_and_comes_back():
    untested = replace(SHORTCUT, paste=None, removal=None)
    evidence = ClassEvidence(4, 100, 90, 8, 500, (SHORTCUT, untested))
    assert ClassEvidence.of(asdict(evidence)) == evidence
