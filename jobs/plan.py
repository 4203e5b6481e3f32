"""Which rows form a shard, and which shards are still to do: pure arithmetic."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

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


def shard_size(rows: int, targets_per_image: int) -> int:
    """Manifest rows of a shard, from the row count alone, so that every resume cuts alike.

    A 64th of the manifest within [16, 4096], and fewer where many targets an image would make a
    part of more than 65,536 rows.
    """
    wanted = min(max(rows // 64, LEAST_ROWS), MOST_ROWS)
    return min(wanted, most_rows(targets_per_image))


def most_rows(targets_per_image: int) -> int:
    """Manifest rows that a shard may have at most, whatever they lie in."""
    return max(1, MOST_ROWS_OF_A_PART // targets_per_image)


def planned(
    rows: int, groups: Sequence[Sequence[int]], size: int, targets_per_image: int
) -> list[Shard]:
    """The shards of a manifest: along the row groups of the files that hold images, if any do."""
    if groups:
        return grouped_shards(groups, size, most_rows(targets_per_image))
    return shards(rows, size)


def shards(rows: int, size: int) -> list[Shard]:
    """Cut `rows` manifest rows into shards of `size`; the last may be shorter."""
    return _numbered([min(size, rows - start) for start in range(0, rows, size)])


def grouped_shards(groups: Sequence[Sequence[int]], size: int, most: int) -> list[Shard]:
    """Cut the rows of files that hold images along the files' row groups, given by their rows.

    Row groups of one file share a shard of at most `size` rows; a larger one is a shard of its own,
    cut evenly where it has more than `most`. A tar, which is one group, so becomes one shard.
    """
    lengths: list[int] = []
    for file in groups:
        joined = 0
        for rows in file:
            if joined and joined + rows > size:
                lengths.append(joined)
                joined = 0
            joined += rows
            if joined > most:
                pieces = -(-joined // most)
                lengths += [joined // pieces + (i < joined % pieces) for i in range(pieces)]
                joined = 0
        lengths += [joined] if joined else []
    return _numbered(lengths)


def _numbered(lengths: Sequence[int]) -> list[Shard]:
    stops = list(accumulate(lengths))
    return [
        Shard(index, stop - rows, stop)
        for index, (rows, stop) in enumerate(zip(lengths, stops, strict=True))
    ]


def remaining(planned: list[Shard], committed: Collection[int]) -> list[Shard]:
    """The shards without a part."""
    return [shard for shard in planned if shard.index not in committed]
