"""Which of a shard's images ends the process that explains it: a search by halves, pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.plan import Shard

# With more of them the cluster is at fault, or the user is to look before the run goes on.
MOST_CRASHED = 16
KILLS_ALONE = 2


@dataclass
class Suspicion:
    """A shard that killed its replica or its loading task, and what is known of the image that did.

    After a first kill the shard is explained again carefully, which tells the batch in hand at a
    second one. Halves of that batch are probed until one row is left. It is convicted if it kills
    alone, twice, since nodes die too, and if some other row does no harm: else processes die of
    something else. `crashed` says what each convicted row does; the shard is explained without it.
    """

    shard: Shard
    crashed: dict[int, str] = field(default_factory=dict)
    _kills: int = 0
    _suspects: Shard | None = None
    _kills_alone: int = 0
    _is_survivable: bool = False
    _culprit: int | None = None
    _by: str = ""
    _controls: list[Shard] = field(default_factory=list)

    @property
    def probe(self) -> Shard | None:
        """The rows to try next; None where the whole shard is to be explained, carefully."""
        if self._controls:
            return self._controls[0]
        return None if self._suspects is None else _first_half(self._suspects)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many images crash that the shard is to be left undone."""
        return len(self.crashed) > MOST_CRASHED

    def killed(self, by: str, in_hand: Shard | None) -> int | None:
        """Note a kill, and return the row that it convicts, if any.

        `in_hand` are the rows that a whole attempt had in hand, None where that is not known.
        """
        if self._controls:
            self._controls.pop(0)
        elif self._suspects is None:
            self._kills += 1
            self._suspects = (in_hand or self.shard) if self._kills > 1 else None
            self._kills_alone, self._is_survivable = 0, False
        else:
            self._suspects = _first_half(self._suspects)
            self._kills_alone += self._suspects.rows == 1
            if self._kills_alone == KILLS_ALONE:
                return self._accuse(self._suspects.start, by)
        return None

    def survived(self) -> int | None:
        """Note that a probe did no harm, and return the row that this convicts, if any.

        Of suspects it is the other half, or nothing that happens again.
        """
        if self._controls:
            self._controls = []
            return self._convict()
        self._is_survivable = True
        suspects = self._suspects
        if suspects is not None:
            self._suspects = _second_half(suspects) if suspects.rows > 1 else None
        return None

    def _accuse(self, row: int, by: str) -> int | None:
        """Convict a row at once where something has survived, else see whether anything does."""
        self._culprit, self._by, self._suspects = row, by, None
        if self._is_survivable:
            return self._convict()
        self._controls = self._others(row)
        return None

    def _convict(self) -> int | None:
        if self._culprit is not None:
            self.crashed[self._culprit] = f"ends the work on it, alone too: {self._by}"
        return self._culprit

    def _others(self, row: int) -> list[Shard]:
        """Single rows, far apart, to see whether any row survives; the shard before has one too."""
        first, middle, last = (
            self.shard.start,
            self.shard.start + self.shard.rows // 2,
            self.shard.stop - 1,
        )
        return [
            Shard(self.shard.index, other, other + 1)
            for other in dict.fromkeys((last, middle, first, first - 1))
            if other >= 0 and other != row and other not in self.crashed
        ]


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
