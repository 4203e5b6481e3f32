"""How far a run is: a live bar on a terminal, a plain line every ten seconds in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
Advance = Callable[[int], None]


class RunProgress:
    """Counts images; `failed` are those without a map. Use as a context manager."""

    def __init__(self, console: Console, images: int, done: int) -> None:
        self.console, self.images, self.done, self.failed = console, images, done, 0
        self.first = done
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images, {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=images, completed=done, rate="")

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def show(self, replicas: int, wanted: int) -> None:
        """Show how far the run is and how many replicas work; time counts from the first one on."""
        if replicas == 0 and self.done == self.first:
            self.started = time.monotonic()
        description = f"{replicas} of {wanted} replicas"
        elapsed = time.monotonic() - self.started
        rate = f"{(self.done - self.first) / elapsed:.1f}/s" if self.done > self.first else "0/s"
        if self.failed:
            rate += f", {self.failed} failed"
        self.bar.update(self.task, description=description, completed=self.done, rate=rate)
        if self.console.is_terminal or time.monotonic() - self.last_line < LINE_SECONDS:
            return
        self.last_line = time.monotonic()
        self.console.print(f"{description}: {self.done} of {self.images} images, {rate}")

    def tell(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(line, markup=False)

    def advance(self, images: int, failed: int) -> None:
        """Count a shard's images."""
        self.done += images
        self.failed += failed


def counted(tables: Iterator[pa.Table], advance: Advance) -> Iterator[pa.Table]:
    """The same tables; each is counted once the next one is asked for."""
    for table in tables:
        yield table
        advance(table.num_rows)


@contextmanager
def row_progress(console: Console, what: str, total: int) -> Iterator[Advance]:
    """Counts rows: a live bar on a terminal, a plain line every ten seconds in a log."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=total)
    done, last_line = 0, time.monotonic()

    def advance(rows: int) -> None:
        nonlocal done, last_line
        done += rows
        bar.advance(task, rows)
        if not console.is_terminal and time.monotonic() - last_line >= LINE_SECONDS:
            last_line = time.monotonic()
            console.print(f"{what}: {done} of {total} rows")

    with bar:
        yield advance
