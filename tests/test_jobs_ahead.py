"""What one thread makes and another takes: in order, to the end, with what making raised."""

import threading
import time
from collections.abc import Generator

import pytest

from jobs.ahead import Made


class Counted:
    """Counts to `last`, and tells how far it came, and whether it was left."""

    def __init__(self, last: int, error: BaseException | None = None) -> None:
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


def make_all(made: Made[int], pause: float = 0.0) -> None:
    while made.make_one():
        time.sleep(pause)


@pytest.mark.parametrize("slow", ["who makes", "who takes", "neither"])
def test_all_items_come_in_order(slow):
    made, taken = Made(Counted(40).items()), []

    def take() -> None:
        for item in made:
            taken.append(item)
            time.sleep(0.002 * (slow == "who takes"))

    taking = threading.Thread(target=take)
    taking.start()
    make_all(made, 0.002 * (slow == "who makes"))
    taking.join()
    assert taken == list(range(1, 41))


def test_nothing_is_made_before_it_is_asked_for_and_what_lies_ready_is_counted():
    counted = Counted(3)
    made = Made(counted.items())
    assert (counted.made, len(made)) == (0, 0)
    assert made.make_one()
    assert made.make_one()
    assert (counted.made, len(made)) == (2, 2)
    assert next(iter(made)) == 1
    assert len(made) == 1
    make_all(made)
    assert list(made) == [2, 3]


def test_no_items_are_none():
    made = Made(Counted(0).items())
    assert not made.make_one()
    assert list(made) == []


@pytest.mark.parametrize("error", [ValueError("no fourth"), SystemExit(3)])
def test_what_making_raises_comes_behind_what_was_made(error):
    made = Made(Counted(3, error).items())
    make_all(made)
    taken = iter(made)
    assert [next(taken) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(type(error)) as raised:
        next(taken)
    assert raised.value is error


def test_who_waits_for_what_is_closed_finds_the_end():
    counted = Counted(1000)
    made, taken = Made(counted.items()), []
    taking = threading.Thread(target=lambda: taken.extend(made))
    taking.start()
    assert made.make_one()
    made.close()
    taking.join()
    assert taken == [1]
    assert counted.was_left
    assert not made.make_one()
