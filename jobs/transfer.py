"""Batches' crops on the device that computes on them, the next one's while this one's are used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from jobs.loader import Batch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Placed:
    """A batch whose crops are on the device, or on their way: `copied` is when they are there."""

    batch: Batch
    crops: UInt8[Tensor, "ok 3 height width"]
    copied: torch.cuda.Event | None = None


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Placed]:
    """The batches in order, their crops on `device`.

    To a GPU the next batch's crops are copied, from pinned memory and on a stream of their own,
    while the caller computes on this one's: two batches are on the device at a time.
    """
    if device.type != "cuda":
        for batch in batches:
            yield Placed(batch, _owned(batch))
        return
    for placed in one_ahead(_copied(batches, device)):
        computing = torch.cuda.current_stream(device)
        if placed.copied is not None:
            computing.wait_event(placed.copied)
        # The copy's stream owns the memory, and must not take it back while it is computed on.
        placed.crops.record_stream(computing)
        yield placed


def _copied(batches: Iterable[Batch], device: torch.device) -> Iterator[Placed]:
    stream = torch.cuda.Stream(device)
    for batch in batches:
        pinned = _owned(batch, pinned=True)
        with torch.cuda.stream(stream):
            crops = pinned.to(device, non_blocking=True)
        yield Placed(batch, crops, stream.record_event())


def _owned(batch: Batch, *, pinned: bool = False) -> UInt8[Tensor, "ok 3 height width"]:
    """The crops in memory of our own: Ray hands out read-only arrays, which torch takes ill."""
    crops = torch.empty(batch.crops.shape, dtype=torch.uint8, pin_memory=pinned)
    crops.numpy()[:] = batch.crops
    return crops


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, none None, the next made by a thread while the caller works on this one."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, "ahead") as thread:
        upcoming = thread.submit(next, iterator, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, iterator, None)
            yield item
