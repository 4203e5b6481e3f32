"""Crops on their way to the device: in order, at most one batch ahead of who computes on them."""

import threading

import numpy as np
import pytest
import torch

from explainer.preprocess import Decoded
from jobs.loader import Batch
from jobs.transfer import on_device, one_ahead


def batch(seed: int) -> Batch:
    crops = np.random.default_rng(seed).integers(0, 256, (seed, 3, 4, 4), dtype=np.uint8)
    crops.flags.writeable = False  # as Ray hands them out
    return Batch([Decoded("ok")] * seed, [1] * seed, crops, 0.0, 0.0)


def test_crops_arrive_as_they_were_and_belong_to_the_caller():
    batches = [batch(3), batch(0), batch(1)]
    for placed, want in zip(on_device(batches, torch.device("cpu")), batches, strict=True):
        assert placed.batch is want
        np.testing.assert_array_equal(placed.crops.numpy(), want.crops, strict=True)
        placed.crops.zero_()
    assert batches[0].crops.any()


def test_the_next_item_is_made_while_the_caller_works_and_no_further_one():
    made, second = [], threading.Event()

    def items():
        for item in range(5):
            made.append(item)
            if item == 1:
                second.set()
            yield item

    for place, item in enumerate(one_ahead(items())):
        assert item == place
        assert second.wait(5)
        assert len(made) <= place + 2
    assert made == list(range(5))


def test_an_error_in_the_making_reaches_the_caller_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("gone")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
