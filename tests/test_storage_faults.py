"""What a store can do to its users, each fault once, before a real S3 server and on real disks."""

import errno
import math
import os
import subprocess
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.faulty_store import Fault, FaultyStore
from jobs.options import check_writable
from jobs.prepare import _may_pass
from storage.images import Reading, fetch
from storage.lease import Lease, RunHeld
from storage.locations import CredentialsRefused, Location, StorageUnavailable, WriteRefused
from storage.runs import Run, open_or_create

PASSING = ("slow_down", "reset", "reset_after")
# Three attempts of three connections each, and aiohttp's own second try of what was reset.
MOST_REQUESTS = 3 * 3 * 2


@pytest.fixture(scope="module")
def store(s3_server):
    with FaultyStore(s3_server.endpoint) as store:
        yield store


@pytest.fixture
def folder(store, s3):
    """A fresh folder behind the proxy, which lets everything pass."""
    store.inject()
    store.requests.clear()
    options = s3.options | {"client_kwargs": {"endpoint_url": store.endpoint}}
    yield Location(s3.url(), options)
    store.inject()


@pytest.fixture
def run(folder) -> Run:
    return open_or_create(folder, {"fingerprint_of": {"a": 1}})


def told_nothing(text: str) -> None:
    raise AssertionError(f"nothing was to be waited for: {text}")


@pytest.mark.parametrize("kind", PASSING)
def test_what_fails_once_is_done_again(store, folder, kind):
    """A write whose answer was lost finds itself in its way, and does not overwrite it."""
    folder.child("read").create(b"bytes")
    store.inject(Fault(kind, times=1))
    assert folder.child("new").create(b"first") is (kind != "reset_after")
    store.inject(Fault(kind, times=1))
    assert folder.child("read").read() == b"bytes"
    store.inject(Fault(kind, times=1))
    assert folder.names() == ["new", "read"]
    store.inject(Fault(kind, times=1))
    folder.child("new").replace(b"second")
    assert folder.child("new").read() == b"second"
    assert store.met[kind] == 4


@pytest.mark.parametrize(
    "kind", [PASSING[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in PASSING[1:])]
)
def test_what_fails_for_ever_ends_in_a_clear_error_after_bounded_tries_with_pauses(
    store, folder, kind
):
    place = folder.child("part")
    store.inject(Fault(kind))
    with pytest.raises(StorageUnavailable, match=r"^s3://tests/.*/part: ") as caught:
        place.create(b"bytes")
    assert _may_pass(caught.value)
    assert 3 <= len(store.requests) <= MOST_REQUESTS
    pauses = [b.at - a.at for a, b in zip(store.requests, store.requests[1:], strict=False)]
    assert max(pauses) >= 0.5
    store.inject()
    assert place.create(b"bytes") is (kind != "reset_after")
    assert place.read() == b"bytes"


def test_those_who_were_refused_together_come_back_apart(store, folder):
    store.inject(Fault("slow_down", times=8))
    together = threading.Barrier(8)

    def create(number: int) -> None:
        together.wait()
        folder.child(str(number)).create(b"bytes")

    threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = sorted(request.at for request in store.requests if not request.met)
    assert folder.names() == [str(number) for number in range(8)]
    assert again[7] - again[0] >= 0.1


def test_a_stall_is_waited_for(store, folder):
    folder.child("x").create(b"bytes")
    store.inject(Fault("stall", seconds=2.0, times=1))
    started = time.monotonic()
    assert folder.child("x").read() == b"bytes"
    assert time.monotonic() - started >= 2.0


def test_an_answer_that_does_not_come_is_asked_for_again(store, folder):
    folder.child("x").create(b"bytes")
    impatient = Location(
        folder.url, folder.options | {"config_kwargs": {"read_timeout": 1, "connect_timeout": 1}}
    )
    store.inject(Fault("stall", seconds=10.0, times=1))
    started = time.monotonic()
    assert impatient.child("x").read() == b"bytes"
    assert 1.0 <= time.monotonic() - started < 9.0


def test_expired_credentials_are_told_at_once_and_are_no_rows(store, folder, run):
    folder.child("a.jpg").create(b"bytes")
    rows = pa.table({"uri": [folder.child("a.jpg").url]})
    store.inject(Fault("expired"))
    store.requests.clear()
    for work in (
        lambda: fetch(rows, Reading(folder.options)),
        lambda: run.publish(0, b"part"),
        run.committed,
        lambda: run.write_summary({}),
    ):
        with pytest.raises(CredentialsRefused, match="expired") as caught:
            work()
        assert not _may_pass(caught.value)
    assert len(store.requests) == 4
    store.inject()
    assert fetch(rows, Reading(folder.options))[0].data == b"bytes"


def test_refused_writes_are_a_state_of_the_store_and_reading_goes_on(store, folder, run):
    run.publish(0, b"part")
    store.inject(Fault("refuse_writes"))
    for work in (
        lambda: run.publish(1, b"part"),
        lambda: run.write_summary({}),
        lambda: run.begin_attempt({}),
        lambda: check_writable(folder),
        lambda: Lease(folder).held(False, told_nothing).__enter__(),
    ):
        with pytest.raises(WriteRefused, match=r"cannot write s3://.*: Access Denied") as caught:
            work()
        assert not _may_pass(caught.value)
    assert run.committed() == {0}


def test_a_claim_whose_answer_was_lost_holds_the_run(store, folder):
    store.inject(Fault("reset_after", methods=("PUT",), times=1))
    with Lease(folder).held(False, told_nothing) as lease:
        assert store.met["reset_after"] == 1
        assert lease.number == 1
        with pytest.raises(RunHeld), Lease(folder).held(False, told_nothing):
            raise AssertionError("two drivers hold one run")
    assert folder.child("lease").names() == ["00000001.json"]


def test_a_listing_that_lags_costs_work_and_overwrites_nothing(store, folder, run):
    run.publish(0, b"first")
    store.inject(Fault("lagging", seconds=math.inf))
    assert run.committed() == set()
    assert run.publish(0, b"second") is False
    store.inject()
    assert run.committed() == {0}
    assert run.part(0).read() == b"first"


def test_a_driver_is_seen_though_the_listing_lags(store, folder):
    with Lease(folder).held(False, told_nothing):
        store.inject(Fault("lagging", seconds=math.inf))
        with pytest.raises(RunHeld), Lease(folder).held(False, told_nothing):
            raise AssertionError("two drivers hold one run")
        store.inject()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_behind_and_what_was_there(small_disk: Path):
    run = open_or_create(Location(str(small_disk)), {"fingerprint_of": {"a": 1}})
    run.publish(0, b"part")
    run.write_summary({"state": "running"})
    (small_disk / "other").write_bytes(bytes(2**20 - 2**16))
    for work in (
        lambda: run.publish(1, bytes(2**17)),
        lambda: run.write_summary({"state": "x" * 2**17}),
    ):
        with pytest.raises(StorageUnavailable, match=os.strerror(errno.ENOSPC)) as caught:
            work()
        assert _may_pass(caught.value)
    names = sorted(path.name for path in small_disk.rglob("*") if path.is_file())
    assert names == ["other", "part-00000000.parquet", "run.json", "summary.json"]
    assert run.read_summary() == {"state": "running"}
    (small_disk / "other").unlink()
    assert run.publish(1, bytes(2**17)) is True


def test_a_disk_that_becomes_read_only_is_told_and_can_be_read(small_disk: Path):
    run = open_or_create(Location(str(small_disk)), {"fingerprint_of": {"a": 1}})
    run.publish(0, b"part")
    for how in ("ro", "rw"):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)
        if how == "ro":
            with pytest.raises(StorageUnavailable, match=os.strerror(errno.EROFS)):
                run.publish(1, b"part")
            with pytest.raises(StorageUnavailable, match=os.strerror(errno.EROFS)):
                check_writable(run.root)
            assert run.committed() == {0}
    assert run.publish(1, b"part") is True
