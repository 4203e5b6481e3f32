"""How fast a run is, from when its parts were written: pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, linear_regression

LEAST_PARTS = 4
RECENT_SECONDS = 600.0
RECENT_PARTS = 16


@dataclass(frozen=True)
class Written:
    """A part: its rows of the manifest, and when it was written, in seconds by the store's clock.

    `when` is None where the store does not tell.
    """

    rows: int
    when: float | None


@dataclass(frozen=True)
class Pace:
    """Images a second; None where it cannot be told, and then `unknown` says why."""

    images_per_second: float | None
    unknown: str | None = None

    def seconds_for(self, rows: int) -> float | None:
        """How long so many rows take at this pace."""
        return None if self.images_per_second is None else rows / self.images_per_second


def pace(parts: Sequence[Written], since: float | None) -> Pace:
    """The pace of the driver that began at `since`, by the store's clock like the parts' own.

    Parts before `since` are those of earlier drivers, between which nobody was at work; of the
    others the last ten minutes count, or 16 parts where these took longer. Times are compared with
    each other alone, so this machine's clock does not matter. Replicas that work side by side write
    in bursts: a straight line through all parts, unlike the first and the last alone, is no faster
    for it.
    """
    if any(part.when is None for part in parts):
        return Pace(None, "this store does not tell when parts were written")
    times = sorted((part.when or 0.0, part.rows) for part in parts)
    mine = [(when, rows) for when, rows in times if since is None or when >= since]
    if len(mine) < LEAST_PARTS:
        return Pace(
            None, f"{len(mine)} parts of this driver are too few to tell, from {LEAST_PARTS} on"
        )
    recent = [each for each in mine if each[0] >= mine[-1][0] - RECENT_SECONDS]
    used = max(recent, mine[-RECENT_PARTS:], key=len)
    middles, total = [], 0.0
    for _, rows in used:
        middles.append(total + rows / 2)
        total += rows
    try:
        slope = linear_regression([when - used[0][0] for when, _ in used], middles).slope
    except StatisticsError:
        slope = 0.0  # all at one time
    if slope <= 0:
        return Pace(None, "all parts of this driver were written within one tick of the clock")
    return Pace(slope)
