"""What one thread makes ahead of who takes it."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Made(Generic[Item]):
    """Items in their order, which a thread makes while they are taken: at most `most` lie ready.

    What making them raises is raised behind the last one. Close it where the rest is not wanted.
    """

    def __init__(self, items: Generator[Item], most: int) -> None:
        self.items, self.most = items, most
        self._ready: deque[Item] = deque()
        self._error: BaseException | None = None
        self._is_wanted, self._has_ended = True, False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._has_ended)
                if not self._ready:
                    break
                item = self._ready.popleft()
                self._changed.notify_all()
            yield item
        error, self._error = self._error, None  # which would keep alive all that it was raised over
        if error is not None:
            raise error

    def make(self) -> None:
        """Make the items, in the thread that calls, until there are none or none are wanted."""
        try:
            with closing(self.items):
                while self._has_room():
                    item = next(self.items)
                    with self._changed:
                        self._ready.append(item)
                        self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - who takes the items has it raised
            self._error = error
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Wait until an item can be made; whether it is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self.most or not self._is_wanted)
            return self._is_wanted

    def close(self) -> None:
        """Have no more made, and wait for the one that is in the making."""
        with self._changed:
            self._is_wanted = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._has_ended)


class Ahead(Generic[Item]):
    """One thread that makes the items of iterators, of one iterator after the other.

    It does not keep its process from ending.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Made[Item]] = SimpleQueue()
        threading.Thread(target=self._work, name="ahead", daemon=True).start()

    def make(self, items: Generator[Item], most: int) -> Made[Item]:
        """The items, `most` of them before one is taken, and behind those of earlier calls."""
        made = Made(items, most)
        self._waiting.put(made)
        return made

    def _work(self) -> None:
        while True:
            self._waiting.get().make()
