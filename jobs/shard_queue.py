"""The shards that are still to do: which comes next, and what becomes of one that failed."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.crashes import MOST_CRASHED, Suspicion
from jobs.plan import Shard
from jobs.worker import Job
from storage.locations import StorageUnavailable

MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class ShardFailure:
    """A shard that is left undone, and why its last attempt failed."""

    shard: Shard
    error: str


@dataclass
class ShardQueue:
    """Shards that wait, and those in hand that may come back.

    A shard that kills is searched for the image that does (jobs.crashes); what was found is told
    in `news`. `retried` counts the shards that came back.
    """

    job: Job
    news: list[str]
    retried: int = 0
    _waiting: deque[Shard] = field(default_factory=deque)
    _undone: set[int] = field(default_factory=set)
    _attempts: Counter[int] = field(default_factory=Counter)
    _suspicions: dict[int, Suspicion] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def undone(self) -> int:
        """How many shards are neither done nor given up."""
        return len(self._undone)

    def extend(self, shards: Iterable[Shard]) -> None:
        """Put shards behind all others."""
        for shard in shards:
            self._waiting.append(shard)
            self._undone.add(shard.index)

    def take(self) -> Shard | None:
        """The next one."""
        return self._waiting.popleft() if self._waiting else None

    def put_first(self, shard: Shard) -> None:
        """Give back a shard that nobody began."""
        self._waiting.appendleft(shard)

    def settle(self, shard: Shard) -> None:
        """A shard is done or given up; whatever else becomes of it does not matter."""
        self._undone.discard(shard.index)

    def is_undone(self, shard: Shard) -> bool:
        """Whether it is neither done nor given up."""
        return shard.index in self._undone

    def suspicion(self, shard: Shard) -> Suspicion | None:
        """What is known of a shard that killed."""
        return self._suspicions.get(shard.index)

    def retry(self, shard: Shard, error: str) -> ShardFailure | None:
        """Put a shard back behind all others, or give it up after its last attempt."""
        self._attempts[shard.index] += 1
        if self._attempts[shard.index] >= MOST_ATTEMPTS:
            return ShardFailure(shard, error)
        self._waiting.append(shard)
        self.retried += 1
        return None

    def killed(self, shard: Shard, by: str, error: str) -> ShardFailure | None:
        """Search on for the image that kills, or put the shard back without one that was found."""
        suspicion = self._suspicions.setdefault(shard.index, Suspicion(shard))
        if suspicion.probe is None:
            suspicion.killed(by, self._in_hand(shard))
            return self.retry(shard, error)
        return self._search_on(suspicion, suspicion.killed(by, None))

    def survived(self, shard: Shard) -> ShardFailure | None:
        """A probe of some rows of the shard did no harm: search on."""
        suspicion = self._suspicions[shard.index]
        return self._search_on(suspicion, suspicion.survived())

    def _search_on(self, suspicion: Suspicion, convicted: int | None) -> ShardFailure | None:
        """Put a shard under suspicion before all others, unless too much of it crashes."""
        shard = suspicion.shard
        if convicted is not None:
            row = self.job.row_of(shard, convicted)
            self.news.append(f"row {row} of the manifest {suspicion.crashed[convicted]}")
            self._attempts[shard.index] = 1
        if suspicion.is_hopeless:
            return ShardFailure(shard, f"more than {MOST_CRASHED} of its images crash")
        self._waiting.appendleft(shard)
        self.retried += 1
        return None

    def _in_hand(self, shard: Shard) -> Shard | None:
        """The rows that were in hand when the shard killed, if they were noted."""
        try:
            rows = self.job.run.follow_breadcrumb(shard.index)
        except StorageUnavailable:
            return None  # then all of the shard's rows are suspects
        return None if rows is None else Shard(shard.index, rows.start, rows.stop)
