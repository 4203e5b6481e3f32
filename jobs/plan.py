"""Which rows form a shard, and which shards are still to do: pure arithmetic."""

from collections.abc import Collection
from dataclasses import dataclass

LEAST_ROWS, MOST_ROWS = 16, 4096
MOST_ROWS_OF_A_PART = 65_536


@dataclass(frozen=True)
class Shard:
    """Manifest rows `start` to `stop` (exclusive): the unit of work, retry and commit."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def batches(self, size: int) -> list[range]:
        """The shard's rows, counted from its start, in runs of at most `size`."""
        return [range(i, min(i + size, self.rows)) for i in range(0, self.rows, size)]


def shard_size(rows: int, targets_per_image: int) -> int:
    """Manifest rows of a shard, from the row count alone, so that every resume cuts alike.

    A 64th of the manifest within [16, 4096], and fewer where many targets an image would make a
    part of more than 65,536 rows.
    """
    wanted = min(max(rows // 64, LEAST_ROWS), MOST_ROWS)
    return max(1, min(wanted, MOST_ROWS_OF_A_PART // targets_per_image))


def shards(rows: int, size: int) -> list[Shard]:
    """Cut `rows` manifest rows into shards of `size`; the last may be shorter."""
    starts = range(0, rows, size)
    return [Shard(index, start, min(start + size, rows)) for index, start in enumerate(starts)]


def remaining(planned: list[Shard], committed: Collection[int]) -> list[Shard]:
    """The shards without a part."""
    return [shard for shard in planned if shard.index not in committed]
