"""Which of a shard's images ends the process that explains it: a search by halves, pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.plan import Shard

# With more of them the cluster is at fault, or the user is to look before the run goes on.
MOST_CRASHED = 16


@dataclass
class Suspicion:
    """A shard that killed its replica or its loading task, and what is known of the image that did.

    After a first kill the shard is explained again carefully, which tells the batch in hand at a
    second one. Halves of that batch are probed until one row is left, and that row alone. A row
    that kills then is convicted: `crashed` says by what, and the shard is explained without it.
    """

    shard: Shard
    crashed: dict[int, str] = field(default_factory=dict)
    _kills: int = 0
    _suspects: Shard | None = None

    @property
    def probe(self) -> Shard | None:
        """The rows to try next; None where the whole shard is to be explained, carefully."""
        return None if self._suspects is None else _first_half(self._suspects)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many images crash that the shard is to be left undone."""
        return len(self.crashed) > MOST_CRASHED

    def killed(self, by: str, in_hand: Shard | None) -> int | None:
        """Note a kill, and return the row that it convicts, if any.

        `in_hand` are the rows that a whole attempt had in hand, None where that is not known.
        """
        if self._suspects is None:
            self._kills += 1
            self._suspects = (in_hand or self.shard) if self._kills > 1 else None
        elif self._suspects.rows > 1:
            self._suspects = _first_half(self._suspects)
        else:
            row, self._suspects = self._suspects.start, None
            self.crashed[row] = f"ends the work on it, alone too: {by}"
            return row
        return None

    def survived(self) -> None:
        """Note that a probe did no harm: it is the other half, or nothing that happens again."""
        suspects = self._suspects
        if suspects is not None:
            self._suspects = _second_half(suspects) if suspects.rows > 1 else None


def positions(crashed: Mapping[int, str], first: int, rows: range) -> dict[int, str]:
    """Of crashed rows of the manifest those within `rows`, which count from row `first`.

    The result counts from the beginning of `rows`.
    """
    return {
        row - first - rows.start: error for row, error in crashed.items() if row - first in rows
    }


def _first_half(rows: Shard) -> Shard:
    return Shard(rows.index, rows.start, rows.start + -(-rows.rows // 2))


def _second_half(rows: Shard) -> Shard:
    return Shard(rows.index, rows.start + -(-rows.rows // 2), rows.stop)
