"""Submitted to a real head with a dashboard and a real S3 server: followed, stopped, resumed."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.weed import free_ports
from storage.locations import Location

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WAIT_SECONDS = 600.0
IMAGES = 60
# Of each image the maps of so many masks, which is slow enough to be stopped in its midst.
SLOWLY = ("--method", "rise:3000")


def environment(**more: str) -> dict[str, str]:
    """This process's own, in which `python` is this one and no cluster is named."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    mine |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    return mine | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **more}


def wait_for(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < until, what()
        time.sleep(0.1)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """`ray start --head` with a dashboard, on ports and in a folder of its own: the url."""
    port, dashboard, client, metrics, *agent = free_ports(6)
    folder = tempfile.mkdtemp(prefix="sub", dir="/tmp")  # Ray's sockets have short names
    with (Path(folder) / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
                f"--temp-dir={folder}/ray", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
                f"--dashboard-agent-listen-port={agent[0]}",
                f"--dashboard-agent-grpc-port={agent[1]}",
                "--object-store-memory=200000000", "--disable-usage-stats",
            ],
            stdout=log, stderr=log, env=environment(), start_new_session=True,
        )  # fmt: skip
    try:
        log_text = (Path(folder) / "log").read_text
        wait_for(lambda: listens(dashboard) or process.poll() is not None, log_text)
        assert process.poll() is None, log_text()
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Work:
    """Images on S3, and the words of a command that explains them."""

    root: Location
    words: tuple[str, ...]

    def parts(self) -> dict[str, bytes]:
        folder = self.root.child("explanations")
        return {name: folder.child(name).read() for name in folder.names()}


@pytest.fixture
def work(s3, image_folder, tiny_model, tmp_path) -> Work:
    """With the store's keys in a file that the cluster's machines have."""
    for path in sorted(image_folder.rglob("*.*g")):
        s3.location(f"photos/{path.parent.name}/{path.name}").create(path.read_bytes())
    options = tmp_path / "s3.json"
    options.write_text(json.dumps(s3.options))
    words = (
        "explain", "--images", s3.url("photos"), "--out", s3.url("run"),
        "--model", tiny_model.name, "--checkpoint", "random:0",
        "--model-args", tiny_model.model_args, "--replicas", "1", "--batch-size", "8",
        "--input-storage", str(options), "--output-storage", str(options),
    )  # fmt: skip
    return Work(s3.location("run"), words)


def submit(address: str, *words: str, follow: bool = True) -> subprocess.CompletedProcess:
    flags = ["--follow"] if follow else []
    return subprocess.run(
        [BIN / "python", "-m", "jobs.cli", "submit", "--address", address, *flags, "--", *words],
        capture_output=True, text=True, check=False, env=environment(), timeout=WAIT_SECONDS,
        cwd=ROOT,
    )  # fmt: skip


def ray_job(address: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [BIN / "ray", "job", *words],
        capture_output=True, text=True, check=False, timeout=WAIT_SECONDS, cwd=ROOT,
        env=environment(RAY_API_SERVER_ADDRESS=address),
    )  # fmt: skip


def submitted_id(told: str) -> str:
    found = re.search(r"^submitted (\S+)$", told, re.MULTILINE)
    assert found, told
    return found[1]


def jobs(address: str) -> dict[str, str]:
    """Everything that the dashboard tells of each job, by its id."""
    from ray.job_submission import JobSubmissionClient

    return {
        job.submission_id: job.model_dump_json() for job in JobSubmissionClient(address).list_jobs()
    }


def test_a_job_is_followed_to_its_end_and_its_exit_code_is_its_own(head, work, rows_of, s3):
    first = submit(head, *work.words)
    assert first.returncode == 0, first.stdout + first.stderr
    job = submitted_id(first.stdout)
    assert "s3.json is read on the cluster's machines" in first.stdout
    assert first.stderr == ""
    assert "60 images" in first.stdout
    assert first.stdout.splitlines()[-1] == f"{job} ended with exit code 0"
    rows = rows_of(work.root)
    assert [row["row"] for row in rows] == list(range(IMAGES))
    assert {row["status"] for row in rows} == {"ok"}
    told = jobs(head)[job]
    assert "testing-secret" not in told
    assert '"working_dir":"gcs://' in told
    assert '"env_vars"' not in told

    again = submit(head, *work.words)
    assert again.returncode == 0, again.stdout
    assert submitted_id(again.stdout) == f"{job}-2"
    assert "this run is finished; nothing to do" in again.stdout

    nowhere = submit(head, "verify", s3.url("nowhere"), *work.words[-4:-2])
    assert nowhere.returncode == 2, nowhere.stdout
    assert nowhere.stdout.splitlines()[-1].endswith(" ended with exit code 2")


def test_what_the_docs_say_of_rays_own_command(head, work, rows_of):
    answer = ray_job(
        head, "submit", "--working-dir", ".", "--", "python", "-m", "jobs.cli", *work.words
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert len(rows_of(work.root)) == IMAGES


@dataclass
class Wire:
    """A connection to a server that can be cut: all that pass it, and new ones are refused."""

    port: int
    target: int
    up: bool = True
    sockets: list[socket.socket] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = listener.accept()
                if not self.up:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self.carry, args=pair, daemon=True).start()

    @staticmethod
    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.up = False
        for end in self.sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire_to(address: str) -> Iterator[Wire]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = Wire(listener.getsockname()[1], int(address.rpartition(":")[2]))
        threading.Thread(target=wire.serve, args=(listener,), daemon=True).start()
        yield wire
        wire.cut()
        listener.shutdown(socket.SHUT_RDWR)
    for end in wire.sockets:
        end.close()


# Of how Ray's client calls aiohttp.
@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
def test_a_job_that_is_unknown_and_a_cluster_that_is_gone_end_the_following(head):
    from ray.job_submission import JobSubmissionClient

    from jobs.follow import follow
    from jobs.submit import tell_version

    client, console = JobSubmissionClient(head), Console(file=io.StringIO(), width=200)
    assert follow(client, "saliency-verify-none", console) == 1
    assert "the cluster does not know saliency-verify-none any more" in console.file.getvalue()
    with wire_to(head) as wire:
        client = JobSubmissionClient(f"http://127.0.0.1:{wire.port}")
        wire.cut()
        assert follow(client, "saliency-verify-none", console, patience=2.0) == 1
    assert "out of reach for 2 s: saliency-verify-none may still be at" in console.file.getvalue()

    tell_version(client, console)
    assert "the cluster has Ray" not in console.file.getvalue()
    client._server_ray_version = "2.9.0"
    tell_version(client, console)
    assert "the cluster has Ray 2.9.0, and this program is tested with" in console.file.getvalue()


@contextmanager
def following(address: str, words: tuple[str, ...], log: Path) -> Iterator[subprocess.Popen]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / "python", "-m", "jobs.cli", "submit", "--address", address, "--follow", "--",
             *words],
            stdout=output, stderr=output, env=environment(), cwd=ROOT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_one_that_is_followed_lost_left_and_stopped_is_resumed_by_the_same_command(
    head, work, rows_of, tmp_path
):
    words, log, second_log = (*work.words, *SLOWLY), tmp_path / "log", tmp_path / "second"
    with wire_to(head) as wire:
        through = f"http://127.0.0.1:{wire.port}"
        with following(through, words, log) as process:
            wait_for(lambda: "1 of 1 replicas" in log.read_text(), log.read_text)
            wire.cut()
            wait_for(lambda: "out of reach (" in log.read_text(), log.read_text)
            seen = log.read_text()
            wire.up = True
            wait_for(lambda: len(log.read_text()) > len(seen) + 20, log.read_text)
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_SECONDS) == 130
    told = log.read_text()
    job = submitted_id(told)
    assert f"{job} goes on; the same command follows it again" in told
    assert told.count("Running entrypoint for job") == 1  # no line is told twice
    assert told.count("out of reach (") == 1

    once_more = submit(head, *words, follow=False)
    assert once_more.returncode == 0
    assert f"{job} is at work already; nothing was submitted" in once_more.stdout
    stop = re.search(r"stop it:  ray job (stop .*)", once_more.stdout)
    assert stop, once_more.stdout
    with following(head, words, second_log) as process:
        wait_for(lambda: "1 of 1 replicas" in second_log.read_text(), second_log.read_text)
        wait_for(lambda: bool(work.parts()), second_log.read_text)
        stopped = ray_job(head, *stop[1].split())
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert process.wait(WAIT_SECONDS) == 143
    assert f"{job} was stopped; the same command does the rest" in second_log.read_text()
    before = work.parts()
    assert 0 < len(before) < 4, "it was not stopped in its midst"

    resumed = submit(head, *words)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert submitted_id(resumed.stdout) == f"{job}-2"
    assert [row["row"] for row in rows_of(work.root)] == list(range(IMAGES))
    assert before.items() <= work.parts().items()
