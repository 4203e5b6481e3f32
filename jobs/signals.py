"""SIGTERM and SIGINT as a KeyboardInterrupt, the only exception that Ray's calls let through."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jobs.config import Exit


class Signals:
    """What this process was told to stop by; `received` is None before that."""

    received: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """To be entered after Ray has started, which installs handlers of its own."""

        def stop(number: int, _frame: FrameType | None) -> None:
            self.received = number
            raise KeyboardInterrupt

        both = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, stop) for number in both}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt again: one that a finaliser raised is ignored by Python."""
        if self.received is not None:
            raise KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[None]:
    """Signals as SystemExit and KeyboardInterrupt, so that temporary folders are removed."""
    signals = Signals()
    try:
        with signals.caught():
            yield
    except BaseException:  # DuckDB has exceptions of its own for a query that a signal ends
        if signals.received == signal.SIGTERM:
            raise SystemExit(Exit.TERMINATED) from None
        if signals.received is not None:
            raise KeyboardInterrupt from None
        raise
