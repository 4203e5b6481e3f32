"""What limits a run, named from where its replicas and loading tasks spent their seconds."""

import pytest

from jobs.bottleneck import bottleneck


@pytest.mark.parametrize(
    ("fetch", "decode", "wait", "compute", "write", "want"),
    [
        (1, 9, 0, 100, 1, "limited by the model: add CPUs, or use a GPU"),
        (1, 90, 5, 100, 1, "limited by the model: add CPUs, or use a GPU"),
        (1, 90, 50, 100, 1, "limited by decoding: add CPUs"),
        (
            90,
            9,
            50,
            20,
            1,
            "limited by fetching: move the images nearer, or add CPUs to fetch more",
        ),
        (1, 9, 50, 20, 1, "limited by handing batches over, not by loading them: give larger"),
        (1, 9, 0, 20, 30, "limited by writing: add replicas, or write to a faster store"),
        (90, 9, 50, 20, 30, "limited by fetching"),
        (90, 9, 10, 15, 30, "limited by writing"),
        (1, 9, 0, 9, 0.5, "too short to tell"),
        (90, 9, 9, 0, 0, "too short to tell"),
    ],
)
def test_the_bottleneck_is_named_with_what_helps(fetch, decode, wait, compute, write, want):
    seconds = {"fetch": fetch, "decode": decode, "wait": wait, "compute": compute, "write": write}
    assert bottleneck(seconds, replicas=1, device="cpu").startswith(want)


def test_more_replicas_need_more_seconds_to_tell_and_gpus_are_added_to_gpus():
    seconds = {"fetch": 1, "decode": 1, "wait": 1, "compute": 50, "write": 1}
    assert bottleneck(seconds, 5, "cuda") == "limited by the model: add replicas or GPUs"
    assert bottleneck(seconds, 6, "cuda") == "too short to tell what limits it"
