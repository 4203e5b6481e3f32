"""Items that one thread makes while another takes them."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Made(Generic[Item]):
    """Items of a generator, in their order: who calls `make_one` makes them, who iterates takes.

    What making one raises is raised to who takes them, behind the last one.
    """

    def __init__(self, items: Generator[Item]) -> None:
        self.items = items
        self._ready: deque[Item] = deque()
        self._error: BaseException | None = None
        self._has_ended = False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._has_ended)
                if not self._ready:
                    break
                item = self._ready.popleft()
            yield item
        error, self._error = self._error, None  # which would keep alive all that it was raised over
        if error is not None:
            raise error

    def __len__(self) -> int:
        """How many were made and not yet taken."""
        return len(self._ready)

    def make_one(self) -> bool:
        """Make the next item; False where there is none."""
        try:
            item = next(self.items)
        except BaseException as error:  # noqa: BLE001 - who takes the items has it raised
            self._end(None if isinstance(error, StopIteration) else error)
            return False
        with self._changed:
            self._ready.append(item)
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """Make no more: who takes them finds the end. By who makes them."""
        self.items.close()
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error = self._error or error
            self._has_ended = True
            self._changed.notify_all()
