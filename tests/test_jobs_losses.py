"""Drivers and replicas that are killed or told to stop in mid-run, and runs that are then whole."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs.config import Exit, ExplainConfig
from jobs.explain import explain
from jobs.plan import Shard
from jobs.replica import Replica, ReplicaInfo
from jobs.signals import Signals
from jobs.worker import ShardReport
from storage.lease import RunHeld
from storage.locations import Location
from storage.runs import open_run

IMAGES, SHARDS = 300, 19
# What `ray job stop` leaves between SIGTERM and SIGKILL.
GRACE_SECONDS = 3.0
Runner = Callable[[ExplainConfig], tuple[Exit, str]]


@pytest.fixture
def config(undisturbed: ExplainConfig, tmp_path: Path) -> ExplainConfig:
    """The same run in another place, with one replica, since each costs seconds to start."""
    execution = replace(undisturbed.execution, replicas=1)
    return replace(undisturbed, out=str(tmp_path / "run"), execution=execution)


def rows(config: ExplainConfig) -> list[int]:
    stored = open_run(Location(config.out))
    tables = [stored.read_part(index, ["row"]) for index in sorted(stored.committed())]
    return [row for table in tables for row in table["row"].to_pylist()]


def command(config: ExplainConfig, log: Path) -> subprocess.Popen:
    """The same run as a process of its own, as a user starts it."""
    arguments = [
        "explain", "--out", config.out, "--images", config.input.images,
        "--model", config.model.name, "--checkpoint", config.model.checkpoint,
        "--model-args", config.model.model_args, "--address", config.execution.address,
        "--replicas", str(config.execution.replicas),
        "--batch-size", str(config.execution.batch_size),
    ]  # fmt: skip
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments], stdout=output, stderr=output
        )


def has_parts(config: ExplainConfig, number: int) -> Callable[[], bool]:
    folder = Location(config.out).child("explanations")
    return lambda: len(folder.names()) >= number


def released(config: ExplainConfig) -> Callable[[], bool]:
    """Whether the last driver has given up its hold on the run."""
    folder = Location(config.out).child("lease")
    return lambda: json.loads(folder.child(folder.names()[-1]).read())["released"]


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 240
) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None or condition()
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_killed_driver_is_resumed_to_the_same_parts(
    run_job, config, undisturbed, tmp_path, parts_of
):
    driver = command(config, tmp_path / "log")
    wait_for(has_parts(config, 2), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 2 <= len(parts_of(config)) < SHARDS
    code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    assert parts_of(config) == parts_of(undisturbed)
    assert rows(config) == list(range(IMAGES))
    assert Location(config.out).child("attempts").names() == ["1.json", "2.json"]


@pytest.mark.slow
def test_signals_end_a_run_again_and_again_and_it_can_be_resumed(
    run_job, config, undisturbed, tmp_path, parts_of, done_when
):
    attempts = Location(config.out).child("attempts")
    # While it waits for its replicas to start.
    with done_when(lambda: bool(attempts.names()), lambda: os.kill(os.getpid(), signal.SIGTERM)):
        got, told = run_job(config)
    assert got is Exit.TERMINATED
    assert "the same command does the rest" in told
    assert open_run(Location(config.out)).read_summary()["state"] == "incomplete"

    log = tmp_path / "log"
    for number, code in ((signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)):
        committed = len(parts_of(config))
        driver = command(config, log)
        wait_for(has_parts(config, committed + 2), driver)
        if number == signal.SIGINT:
            with pytest.raises(RunHeld, match=f"process {driver.pid}.*, which is alive; wait for"):
                run_job(config)
        driver.send_signal(number)
        wait_for(released(config), driver, seconds=GRACE_SECONDS)
        assert driver.wait(timeout=60) == code, log.read_text()
        assert "Traceback" not in log.read_text()
        assert open_run(Location(config.out)).read_summary()["state"] == "incomplete"
        assert committed < len(parts_of(config)) < SHARDS
    assert run_job(config)[0] is Exit.COMPLETE
    assert parts_of(config) == parts_of(undisturbed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_an_object_goes_stops_all_the_same(number):
    class Going:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)  # what its handler raises here, Python ignores

    signals = Signals()
    with signals.caught():
        signals.check()
        going = Going()
        del going
        assert signals.received == number
        with pytest.raises(KeyboardInterrupt):
            signals.check()


def replica_processes(address: str) -> list[int]:
    """Processes of replicas on the cluster at `address`: children of its raylet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.read_bytes().startswith(b"ray::Replica"):
            parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
            if address in Path(f"/proc/{parent}/cmdline").read_text():
                found.append(int(path.parent.name))
    return found


def test_a_killed_replica_is_replaced_and_no_row_is_lost(
    run_job, config, undisturbed, parts_of, done_when
):
    def kill() -> None:
        os.kill(replica_processes(config.execution.address)[0], signal.SIGKILL)

    with done_when(has_parts(config, 2), kill):
        code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    assert "a replica was lost: " in told
    assert parts_of(config) == parts_of(undisturbed)


def test_a_replica_with_other_weights_ends_the_run(config, tmp_path, parts_of):
    class Other(Replica):
        def ready(self) -> ReplicaInfo:
            return replace(super().ready(), weights_digest="another")

    console = Console(file=io.StringIO(), width=200)
    code = explain(config, console, Other)
    told = console.file.getvalue()
    assert code is Exit.INCOMPLETE
    assert re.search(r"the replica on node \S+ holds other weights than the run", told), told
    assert parts_of(config) == {}


@pytest.mark.slow
def test_replicas_that_all_die_end_the_run(config, parts_of):
    class Dies(Replica):
        def ready(self) -> ReplicaInfo:
            os._exit(1)

    console = Console(file=io.StringIO(), width=200)
    code = explain(config, console, Dies)
    told = console.file.getvalue()
    assert code is Exit.INCOMPLETE
    assert "4 replicas lost in a row; the last: " in told
    assert parts_of(config) == {}


@pytest.mark.slow
def test_a_hung_replica_is_replaced_and_no_row_is_lost(config, undisturbed, tmp_path, parts_of):
    marker = tmp_path / "hung"

    class HangsOnce(Replica):
        def explain(self, shard: Shard, upcoming: Shard | None) -> ShardReport:
            if shard.index == 3 and not marker.exists():
                marker.touch()
                time.sleep(600)
            return super().explain(shard, upcoming)

    # Long enough for a slow machine to start loading processes, which counts too.
    impatient = replace(config, execution=replace(config.execution, shard_timeout=20.0))
    console = Console(file=io.StringIO(), width=200)
    code = explain(impatient, console, HangsOnce)
    told = console.file.getvalue()
    assert code is Exit.COMPLETE, told
    assert marker.exists()
    assert re.search(r"a replica was lost: hung: \d\d s for shard 3", told), told
    assert parts_of(config) == parts_of(undisturbed)
