"""A replica as the driver sees it: what it was given, and at what pace it works."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from jobs.plan import Shard

# A shard that takes so many times as long as its replica's pace says is late.
LATE_TIMES = 1.5
# What is not worth a second replica's work.
LITTLE_SECONDS = 5.0


@dataclass
class Member:
    """A replica and what it was given: the shard in hand and the one that loads behind it.

    `since` is when it was given the shard, on the monotonic clock; `hung` says how long it took,
    once it was ended for that; `row_seconds` is the pace of its last shard.
    """

    actor: Any
    since: float = 0.0
    hung: str | None = None
    ready: bool = False
    shard: Shard | None = None
    upcoming: Shard | None = None
    row_seconds: float | None = None

    def left(self, pace: float, now: float) -> float:
        """Seconds until its shard is done, at `pace` a row.

        One that is late may take as long again as it has taken: nobody knows what holds it.
        """
        expected, took = pace * (self.shard.rows if self.shard else 0), now - self.since
        return took if took > LATE_TIMES * expected else expected - took


def straggler(members: Sequence[Member], helper: Member, now: float) -> Member | None:
    """Whose shard `helper`, from its beginning, would do much sooner than who has it, if anyone's.

    Of several, the one that would be done last. A replica that has done no shard yet is taken to be
    as fast as the others.
    """
    known = [m.row_seconds for m in [*members, helper] if m.row_seconds is not None]
    at_work = [m for m in members if m.shard is not None]
    if not known or not at_work:
        return None
    usual = median(known)
    last = max(at_work, key=lambda m: m.left(m.row_seconds or usual, now))
    rows = last.shard.rows if last.shard else 0
    gain = last.left(last.row_seconds or usual, now) - rows * (helper.row_seconds or usual)
    return last if gain > LITTLE_SECONDS else None
