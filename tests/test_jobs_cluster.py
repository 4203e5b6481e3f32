"""Ray as the jobs use it: connections, and tasks whose results come in order."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from jobs.cluster import ClusterError, check_reachable, connected, in_order, reason


def test_a_connection_that_exists_is_used_and_kept(ray_address):
    here = ray.get_runtime_context().gcs_address
    port = ray_address.rpartition(":")[2]
    for address in (None, ray_address, f"localhost:{port}", "auto"):
        with connected(address):
            assert ray.get_runtime_context().gcs_address == here
        assert ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "192.0.2.1:{port}", "no-such-host.invalid:1"])
def test_a_connection_to_another_cluster_is_refused(ray_address, address):
    other = address.format(port=ray_address.rpartition(":")[2])
    told = f"connected to the Ray cluster at {ray_address}, and --address asks for {other}"
    told = "cannot connect to the Ray cluster at no-such-host" if "invalid" in other else told
    with pytest.raises(ClusterError, match=told), connected(other):
        pass
    assert ray.is_initialized()


def test_an_address_where_nobody_listens_is_told_in_seconds():
    with pytest.raises(ClusterError, match=r"cannot connect to the Ray cluster at 127\.0\.0\.1:1:"):
        check_reachable("127.0.0.1:1")


def once_lost(folder: Path) -> Callable[[int], int]:
    """A function whose process is lost over the third item, the first time."""

    def work(item: int) -> int:
        marker = folder / "lost"
        if item == 3 and not marker.exists():
            marker.touch()
            os._exit(1)
        return item

    return work


def test_results_come_in_order_and_few_wait_for_their_turn(ray_address):
    taken = []

    def items():
        for item in range(40):
            taken.append(item)
            yield item

    most = 2 * 4
    for place, result in enumerate(in_order(lambda item: item**2, items())):
        assert result == place**2
        assert len(taken) <= place + most
    assert len(taken) == 40


def test_a_lost_process_loses_no_result(ray_address, tmp_path):
    assert list(in_order(once_lost(tmp_path), range(8))) == list(range(8))
    assert (tmp_path / "lost").exists()


def test_an_error_of_the_function_is_raised_as_itself(ray_address):
    def failing(item: int) -> int:
        if item == 5:
            raise KeyError("no such item")
        return item

    with pytest.raises(KeyError) as caught:
        list(in_order(failing, range(8)))
    assert reason(caught.value) == "KeyError: 'no such item'"
