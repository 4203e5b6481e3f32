"""Whose shard an idle replica does again because it would be done sooner."""

import pytest

from jobs.member import LATE_TIMES, Member, straggler
from jobs.plan import Shard

ROWS = 100


def member(index: int, since: float, row_seconds: float | None) -> Member:
    shard = Shard(index, index * ROWS, (index + 1) * ROWS)
    return Member(None, since, shard=shard, row_seconds=row_seconds, ready=True)


def idle(row_seconds: float | None) -> Member:
    return Member(None, row_seconds=row_seconds, ready=True)


def test_a_replica_that_keeps_its_pace_is_left_alone():
    at_work = [member(0, 0.0, 0.1), member(1, 5.0, 0.1)]
    for now in (5.0, 10.0, 10.0 * LATE_TIMES):
        assert straggler(at_work, idle(0.1), now) is None


def test_a_late_one_is_copied_and_the_latest_first():
    at_work = [member(0, 5.0, 0.1), member(1, 0.0, 0.1)]
    assert straggler(at_work, idle(0.1), 10.0 * LATE_TIMES + 1) is at_work[1]
    assert straggler(at_work[:1], idle(0.1), 5 + 10.0 * LATE_TIMES + 1) is at_work[0]


def test_a_slow_device_is_copied_at_once_by_a_fast_one_and_never_the_other_way_round():
    slow, fast = member(0, 0.0, 0.5), member(1, 0.0, 0.1)
    assert straggler([slow, fast], idle(0.1), now=1.0) is slow
    assert straggler([slow], idle(0.1), now=41.0) is None  # 9 s are left, a copy takes 10
    assert straggler([fast], idle(0.5), now=1.0) is None


@pytest.mark.parametrize(("now", "copied"), [(14.0, False), (16.0, True)])
def test_who_has_done_no_shard_yet_is_taken_to_be_as_fast_as_the_others(now, copied):
    new = member(0, 0.0, None)
    assert (straggler([new], idle(0.1), now) is new) is copied
    assert (straggler([member(0, 0.0, 0.1)], idle(None), now) is not None) is copied


def test_what_a_copy_would_gain_little_is_left_alone():
    slow = member(0, 0.0, 0.1)
    assert straggler([slow], idle(0.04), now=2.0) is None  # 8 s are left, a copy takes 4
    assert straggler([slow], idle(0.02), now=2.0) is slow  # or 2


def test_nothing_is_copied_while_no_pace_is_known_or_nothing_is_in_hand():
    assert straggler([member(0, 0.0, None)], idle(None), now=1e6) is None
    assert straggler([idle(0.1)], idle(0.1), now=1e6) is None
