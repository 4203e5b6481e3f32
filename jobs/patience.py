"""When a replica that explains a shard is taken for hung."""

from dataclasses import dataclass

from jobs.plan import Shard

# So many times as long as the slowest shard before it, by rows.
HUNG_TIMES = 10
LEAST_SECONDS = 300.0
UNKNOWN_SECONDS = 4 * 3600.0


@dataclass
class Patience:
    """How long a shard may take: `fixed` seconds, or what those that are done teach."""

    fixed: float | None
    _slowest_row: float | None = None

    def learn(self, shard: Shard, seconds: float) -> None:
        """Note how long a shard took."""
        self._slowest_row = max(self._slowest_row or 0.0, seconds / shard.rows)

    def seconds(self, shard: Shard) -> float:
        """How long a shard may take."""
        if self.fixed is not None:
            return self.fixed
        if self._slowest_row is None:
            return UNKNOWN_SECONDS
        return max(LEAST_SECONDS, HUNG_TIMES * self._slowest_row * shard.rows)
