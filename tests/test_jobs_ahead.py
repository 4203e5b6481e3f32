"""What a thread makes ahead: in order, only so much, and no more than is wanted."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator

import pytest

from jobs.ahead import Ahead


def until(condition: Callable[[], bool]) -> bool:
    """Whether it holds within ten seconds."""
    ends = time.monotonic() + 10
    while not condition() and time.monotonic() < ends:
        time.sleep(0.001)
    return condition()


class Counted:
    """Counts to `last`, and tells how far it came, and whether it was left."""

    def __init__(self, last: int, error: Exception | None = None) -> None:
        self.last, self.error = last, error
        self.made, self.was_left = 0, False

    def items(self) -> Generator[int]:
        try:
            while self.made < self.last:
                self.made += 1
                yield self.made
        finally:
            self.was_left = True
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("most", [1, 3, 100])
def test_all_items_come_in_order(most):
    assert list(Ahead().make(Counted(40).items(), most)) == list(range(1, 41))


def test_no_items_are_none():
    assert list(Ahead().make(Counted(0).items(), 4)) == []


def test_only_so_many_lie_ready_and_one_more_is_made_for_each_that_is_taken():
    counted = Counted(40)
    made = Ahead().make(counted.items(), 5)
    assert until(lambda: counted.made == 5)
    taken = iter(made)
    assert [next(taken), next(taken)] == [1, 2]
    assert until(lambda: counted.made == 7)
    time.sleep(0.05)
    assert counted.made == 7
    assert list(taken) == list(range(3, 41))


def test_what_making_raises_comes_behind_what_was_made():
    taken = iter(Ahead().make(Counted(3, ValueError("no fourth")).items(), 2))
    assert [next(taken) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="no fourth"):
        next(taken)


def test_an_error_in_one_does_not_touch_the_next():
    ahead = Ahead()
    first = ahead.make(Counted(1, ValueError("bad")).items(), 4)
    second = ahead.make(Counted(2).items(), 4)
    assert list(second) == [1, 2]
    with pytest.raises(ValueError, match="bad"):
        list(first)


def test_iterators_are_made_one_after_the_other():
    ahead, first, second = Ahead(), Counted(4), Counted(2)
    of_first, of_second = ahead.make(first.items(), 2), ahead.make(second.items(), 2)
    assert until(lambda: first.made == 2)
    time.sleep(0.05)
    assert second.made == 0
    assert list(of_first) == [1, 2, 3, 4]
    assert until(lambda: second.made == 2)
    assert list(of_second) == [1, 2]


def test_what_is_closed_is_left_where_it_is_and_the_next_goes_on():
    ahead, first, second = Ahead(), Counted(1000), Counted(2)
    of_first, of_second = ahead.make(first.items(), 3), ahead.make(second.items(), 3)
    assert until(lambda: first.made == 3)
    of_first.close()
    assert first.was_left
    assert first.made == 3
    of_first.close()
    assert list(of_second) == [1, 2]


def test_what_is_closed_before_its_turn_is_never_begun():
    ahead, gate, second = Ahead(), threading.Event(), Counted(2)
    first = ahead.make((gate.wait() for _ in range(1)), 1)
    closing = threading.Thread(target=ahead.make(second.items(), 1).close)
    closing.start()
    time.sleep(0.05)
    gate.set()
    assert list(first) == [True]
    closing.join()
    assert second.made == 0


def test_what_waits_to_be_taken_does_not_keep_a_process_alive():
    program = "from jobs.ahead import Ahead; import itertools; "
    program += "Ahead().make((n for n in itertools.count()), 2)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
