"""The words of an audit, for who reads what one found: needs no torch."""

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What an audit says of a class or of a cue, from worst to best."""

    SHORTCUT = "shortcut"
    COMPACT_CUE = "compact cue: look at it"
    CONTEXT = "context"
    UNTESTABLE = "not testable"
    CLEARED = "cleared"


# What asks for a look: a finding.
ACCUSED = (Verdict.SHORTCUT, Verdict.COMPACT_CUE, Verdict.CONTEXT)


def worst_of(found: Iterable[tuple[int, int | None, Verdict]]) -> dict[int, Verdict]:
    """The worst verdict on each class, of (class, cue or None, verdict).

    A cue that too few images carry to test it is no verdict on its class.
    """
    order = list(Verdict)
    result: dict[int, Verdict] = {}
    for target, cue, told in found:
        verdict = Verdict.CLEARED if cue is not None and told is Verdict.UNTESTABLE else told
        result[target] = min(result.get(target, verdict), verdict, key=order.index)
    return result
