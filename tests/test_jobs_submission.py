"""What may be submitted, under which id, and what travels with it; no cluster."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from ray.job_submission import JobDetails, JobSubmissionClient
from rich.console import Console

from benchmarks.weed import free_ports
from jobs.cli import AnyCommand, parse
from jobs.commands import SubmitConfig
from jobs.config import ConfigurationError, Exit
from jobs.follow import exit_code, follow
from jobs.submission import NO_PLACES, PLACES, KnownJob, Submission, free_id, running
from jobs.working_dir import SOURCE, packed

EXPLAIN = ("explain", "--images", "s3://b/photos", "--model", "vit_tiny_patch16_224")


def submission(*words: str) -> Submission:
    return Submission(words, parse(words))


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        submission(*words).check()
    return caught.value.problems


def options_with_a_text(kind: type) -> set[str]:
    found = set()
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            found |= options_with_a_text(hint)
        elif {str, tuple[str, ...]} & {hint, *get_args(hint)} or "Literal" in str(hint):
            found.add(name)
    return found


def test_of_every_option_it_is_known_whether_it_names_a_place():
    assert not PLACES & NO_PLACES
    named = set()
    for command in set(get_args(AnyCommand)) - {SubmitConfig}:
        named |= options_with_a_text(command)
    assert named - {"ids"} == PLACES | NO_PLACES


def test_a_command_has_one_id_in_whatever_order_its_options_are():
    one = submission(*EXPLAIN, "--out", "s3://b/run", "--seed", "0").base_id
    other = submission("explain", "--out", "s3://b/run", *EXPLAIN[3:], *EXPLAIN[1:3]).base_id
    assert one == other
    assert one.startswith("saliency-explain-")
    assert one != submission(*EXPLAIN, "--out", "s3://b/run2").base_id
    assert submission("verify", "s3://b/run").base_id != submission("report", "s3://b/run").base_id


def test_an_id_that_ended_gets_a_number_and_one_at_work_is_found():
    jobs = [KnownJob("saliency-explain-abc", True), KnownJob("saliency-explain-abcd", False)]
    assert running("saliency-explain-abc", jobs) is None
    assert free_id("saliency-explain-abc", jobs) == "saliency-explain-abc-2"
    jobs += [KnownJob(f"saliency-explain-abc-{number}", number < 10) for number in range(2, 11)]
    assert running("saliency-explain-abc", jobs) == "saliency-explain-abc-10"
    assert free_id("saliency-explain-abc", jobs) == "saliency-explain-abc-11"
    assert free_id("saliency-verify-abc", jobs) == "saliency-verify-abc"


def test_paths_of_this_machine_are_refused_all_at_once():
    found = problems(
        *EXPLAIN, "--out", "runs/a", "--class-names", "~/names", "--head", "file://h.safetensors",
        "--input-storage", "s3.json", "--address", "auto", "--batch-size", "0",
    )  # fmt: skip
    options = ["--head", "--class-names", "--out", "--input-storage", "--address", "--batch-size"]
    assert sorted(line.split()[0].rstrip(":") for line in found) == sorted(options)
    storage = next(line for line in found if line.startswith("--input-storage"))
    assert "credentials are never uploaded" in storage
    assert "give its absolute path there" in storage
    assert "give a url (s3://...)" in next(line for line in found if line.startswith("--out"))


def test_defaults_that_are_paths_of_this_machine_are_refused_too():
    assert problems("demo")[0].startswith("--out: saliency-demo is a path of this machine")
    assert problems("show", "s3://b/run", "a.jpg")[0].startswith("--out: . is a path of this")
    assert problems("verify", "run")[0].startswith("RUN: run is a path of this machine")


def test_absolute_paths_are_the_clusters_and_other_texts_are_no_paths():
    job = submission(
        *EXPLAIN, "--checkpoint", "random:0", "--out", "s3://b/run", "--input-storage",
        "/etc/secrets/s3.json", "--where", "label = 'a/b'", "--method", "rise:10",
    )  # fmt: skip
    job.check()
    assert [(place.option, place.value) for place in job.mounted()] == [
        ("--input-storage", "/etc/secrets/s3.json")
    ]
    submission("export", "s3://b/run", "--out", "s3://b/x", "--images", "refer").check()
    submission(*EXPLAIN, "--out", "abfs://container@account.dfs.core.windows.net/run").check()
    submission("report", "s3://b/what?.run").check()


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host/model.safetensors",
        "https://hunter2@host/model.safetensors",
        "https://host/model.safetensors?X-Amz-Signature=hunter2",
        "s3://key:hunter2@bucket/model.safetensors",
    ],
)
def test_urls_that_hold_secrets_are_refused_and_not_told(url):
    (problem,) = problems(*EXPLAIN, "--out", "s3://b/run", "--checkpoint", url)
    assert problem.startswith("--checkpoint: ")
    assert "a cluster's dashboard shows every job's command" in problem
    assert "hunter2" not in problem


def test_the_clusters_shell_reads_the_words_as_they_were_given(tmp_path):
    words = (
        *EXPLAIN, "--out", "s3://b/$(touch broken)", "--where",
        "label = 'a\"b' AND x = '\n;touch broken;' AND y = '<script>\u202e`touch broken`'",
    )  # fmt: skip
    line = submission(*words).entrypoint
    assert line.startswith("python -m jobs.cli explain ")
    show = line.replace("python -m jobs.cli", "python3 -c 'import sys; print(sys.argv[1:])'", 1)
    answer = subprocess.run(
        show, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert answer.stdout.strip() == str(list(words))
    assert not list(tmp_path.iterdir())
    assert tuple(shlex.split(line)[3:]) == words


def test_what_travels_is_the_program_alone_and_it_runs_from_there():
    with packed() as folder:
        assert {path.name for path in folder.iterdir()} == {
            *("jobs", "explainer", "storage", "pyproject.toml"),
        }
        packed_names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert any(name.startswith("jobs/demo_model/") for name in packed_names)
        assert not [name for name in packed_names if "__pycache__" in name]
        assert all((SOURCE / name).read_bytes() == (folder / name).read_bytes()
                   for name in packed_names)  # fmt: skip
        answer = subprocess.run(
            [sys.executable, "-c", "import jobs.cli as c; print(c.__file__)"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert Path(answer.stdout.strip()) == folder / "jobs" / "cli.py"
    assert not folder.exists()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout with one file a package, one that is ignored and one that is none of it."""
    for package in ("jobs", "explainer", "storage"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("a")
    (tmp_path / "secrets.json").write_text("hunter2")
    (tmp_path / "jobs" / "weights.bin").write_bytes(bytes(2000))
    return tmp_path


def test_what_gitignore_names_stays_and_the_rest_has_a_limit(source):
    with pytest.raises(ConfigurationError, match=r"jobs/weights\.bin \(0\.0\)") as caught, packed(
        source, most_bytes=1000
    ):  # fmt: skip
        pass
    assert "at most 0 travel with a job" in str(caught.value)
    (source / ".gitignore").write_text("# large\n*.bin\n")
    with packed(source, most_bytes=1000) as folder:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"jobs/a.py", "explainer/a.py", "storage/a.py"}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, Exit.COMPLETE),
        ("FAILED", 2, Exit.BAD_INPUT),
        ("FAILED", 70, Exit.BUG),
        ("FAILED", -9, 137),
        ("FAILED", None, Exit.INCOMPLETE),
        ("STOPPED", None, Exit.TERMINATED),
    ],
)
def test_a_jobs_exit_code_is_its_own(status, code, expected):
    details = JobDetails(
        type="SUBMISSION", status=status, entrypoint="python", driver_exit_code=code
    )
    assert exit_code(details) == expected


def saliency(*words: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", *words],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
    )


JOB = ("--", *EXPLAIN, "--out", "s3://b/run")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ([], "such as http://head:8265; got none"),
        (["--address", "ray://head:10001"], "such as http://head:8265; got ray://head:10001"),
        (["--address", "head:6379"], "such as http://head:8265; got head:6379"),
        (["--address", "http://me:hunter2@head:8265"], "--address has a password or a query"),
    ],
)
def test_an_address_is_the_url_of_a_dashboard(address, told):
    answer = saliency(*address, *JOB)
    assert answer.returncode == 2
    assert told in answer.stdout
    assert "hunter2" not in answer.stdout + answer.stderr


def test_a_cluster_that_is_not_there_exits_1_whatever_the_environment_says():
    (port, other) = free_ports(2)
    for environment in ({}, {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{other}"}):
        answer = saliency("--address", f"http://127.0.0.1:{port}", *JOB, **environment)
        assert answer.returncode == 1
        assert f"cannot submit to http://127.0.0.1:{port}: " in answer.stdout
        assert "Traceback" not in answer.stderr
    named = saliency(*JOB, RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{other}")
    assert f"cannot submit to http://127.0.0.1:{other}: " in named.stdout


def test_a_command_that_does_not_parse_is_not_submitted():
    address = ("--address", "http://127.0.0.1:9")
    assert saliency(*address, "--", "explain", "--block", "last").returncode == 2
    twice = saliency(*address, "--", "submit", *address, *JOB)
    assert twice.returncode == 2
    assert "behind -- stands the command itself" in twice.stdout


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)]
)
def test_a_signal_that_is_lost_where_a_connection_breaks_ends_the_following(number, code):
    class Breaking(JobSubmissionClient):
        def __init__(self) -> None:
            """Connect to nothing."""

        def get_address(self) -> str:
            return "http://head:8265"

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            try:
                os.kill(os.getpid(), number)
                time.sleep(1)
            except KeyboardInterrupt:
                raise ConnectionError("broken") from None
            yield job_id

    console = Console(file=io.StringIO(), width=200)
    assert follow(Breaking(), "job", console, patience=5.0) is code
    assert "job goes on; the same command follows it again" in console.file.getvalue()
