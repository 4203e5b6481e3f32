"""Shards cover the manifest once, and cut alike on every resume."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan import MOST_ROWS_OF_A_PART, grouped_shards, remaining, shard_size, shards


@given(rows=st.integers(1, 200_000), targets=st.integers(1, 21_000))
def test_shards_cover_every_row_once_and_parts_stay_small(rows, targets):
    size = shard_size(rows, targets)
    cut = shards(rows, size)
    assert [shard.index for shard in cut] == list(range(len(cut)))
    assert [row for shard in cut[:3] for row in range(shard.start, shard.stop)] == list(
        range(cut[min(2, len(cut) - 1)].stop)
    )
    assert all(after.start == before.stop for before, after in pairwise(cut))
    assert (cut[0].start, cut[-1].stop) == (0, rows)
    assert size == 1 or size * targets <= MOST_ROWS_OF_A_PART


@pytest.mark.parametrize(
    ("rows", "targets", "size"),
    [
        (1, 1, 16),
        (256, 1, 16),
        (64_000, 1, 1000),
        (10_000_000, 1, 4096),
        (10_000_000, 1000, 65),
        (100, 21_841, 3),
        (100, 100_000, 1),
    ],
)
def test_shard_size(rows, targets, size):
    assert shard_size(rows, targets) == size


@pytest.mark.parametrize(
    ("groups", "lengths"),
    [
        ([[300], [7], [90]], [300, 7, 90]),  # tars, of whatever size
        ([[100, 100, 50]], [100, 100, 50]),  # row groups as large as a shard
        ([[40, 40, 40, 40], [40]], [80, 80, 40]),  # small ones share a shard, but not two files
        ([[30, 120, 30, 30]], [30, 120, 60]),
        ([[2500]], [834, 833, 833]),  # more than a part may hold
        ([], []),
    ],
)
def test_shards_follow_the_row_groups_of_the_files_that_hold_images(groups, lengths):
    cut = grouped_shards(groups, size=100, most=1000)
    assert [shard.rows for shard in cut] == lengths
    assert all(after.start == before.stop for before, after in pairwise(cut))
    assert sum(lengths) == sum(map(sum, groups))


def test_remaining_shards_are_those_without_a_part():
    cut = shards(50, 16)
    assert [shard.index for shard in remaining(cut, {0, 2, 99})] == [1, 3]
