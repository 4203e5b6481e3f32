"""One driver holds a run: dead ones are replaced, live ones are not, and one that was is told."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from storage.lease import Claim, Lease, RunHeld
from storage.locations import Location

SECONDS = 1.5


def told_nothing(text: str) -> None:
    raise AssertionError(f"nothing was to be waited for: {text}")


def claims(root: Location) -> dict[str, dict]:
    folder = root.child("lease")
    return {name: json.loads(folder.child(name).read()) for name in folder.names()}


def claim(root: Location, number: int, **changes: object) -> Claim:
    """A claim that some driver wrote."""
    made = replace(Lease(root).claim, **changes)
    root.child("lease", f"{number:08d}.json").replace(json.dumps(asdict(made)).encode())
    return made


def test_a_released_run_is_free_at_once(location):
    for number in (1, 2):
        with Lease(location).held(False, told_nothing) as lease:
            assert lease.number == number
            assert claims(location)[f"{number:08d}.json"]["released"] is False
    assert [each["released"] for each in claims(location).values()] == [True, True]


def test_a_live_driver_of_this_machine_keeps_the_run(location):
    with (
        Lease(location).held(False, told_nothing),
        pytest.raises(RunHeld, match=r"is held by the driver on .* is alive; .*--take-over"),
        Lease(location).held(False, told_nothing),
    ):
        raise AssertionError("two drivers hold one run")
    assert list(claims(location)) == ["00000001.json"]


def test_a_killed_driver_of_this_machine_is_replaced_at_once(tmp_path):
    code = (
        "import os, sys; from storage.lease import Lease; from storage.locations import Location\n"
        "with Lease(Location(sys.argv[1])).held(False, print): os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert ended.returncode == -9
    assert claims(Location(str(tmp_path)))["00000001.json"]["released"] is False
    with Lease(Location(str(tmp_path))).held(False, told_nothing) as lease:
        assert lease.number == 2


def test_a_reused_process_number_is_no_live_driver(location):
    claim(location, 1, process_started="1")
    with Lease(location).held(False, told_nothing) as lease:
        assert lease.number == 2


def test_a_silent_driver_elsewhere_is_waited_for_and_then_replaced(location):
    claim(location, 1, machine="elsewhere", host="far")
    told: list[str] = []
    started = time.monotonic()
    with Lease(location, SECONDS).held(False, told.append) as lease:
        assert lease.number == 2
    assert time.monotonic() - started >= SECONDS
    assert told[0].startswith("the driver on far (process ")
    assert " held this run and may be dead: " in told[0]


def test_a_driver_elsewhere_that_renews_keeps_the_run(location):
    with Lease(location, SECONDS).held(False, told_nothing) as holder:
        claim(location, 1, machine="elsewhere")
        holder.claim = replace(holder.claim, machine="elsewhere")
        with (
            pytest.raises(RunHeld, match="which is alive"),
            Lease(location, 10 * SECONDS).held(False, lambda _: None),
        ):
            raise AssertionError("two drivers hold one run")


def test_a_driver_that_was_taken_over_is_told_and_leaves_the_claim_alone(location):
    first, second = Lease(location, SECONDS), Lease(location, SECONDS)
    with first.held(False, told_nothing) as old, second.held(True, told_nothing) as new:
        assert new.number == 2
        until = time.monotonic() + 5 * SECONDS
        while old.lost is None and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(RunHeld, match="has taken this run over; this driver stops"):
            old.check()
        new.check()
    assert claims(location)["00000001.json"]["released"] is False


def test_of_drivers_that_come_together_one_holds(location):
    ready, held, refused = threading.Barrier(6), [], []
    done = threading.Event()

    def drive() -> None:
        ready.wait()
        try:
            with Lease(location).held(False, told_nothing) as lease:
                held.append(lease.number)
                done.wait(20)
        except RunHeld:
            refused.append(1)

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(held) + len(refused) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert held == [1]
    assert len(refused) == 5


def test_what_is_no_claim_is_waited_for_like_a_silent_driver(location):
    location.child("lease", "00000003.json").create(b"{}")
    told: list[str] = []
    with Lease(location, SECONDS).held(False, told.append) as lease:
        assert lease.number == 4
    assert told[0].startswith("the driver on an unknown host (process 0)")
