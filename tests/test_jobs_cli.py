"""The command as a shell sees it: help without torch or Ray, exit codes, lines, no traces."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest

from jobs.cli import set_ray_environment
from jobs.config import ExecutionConfig, Exit, InputConfig, MethodConfig, ModelConfig


def saliency(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explain"],
        ["audit"],
        ["evaluate"],
        ["demo"],
        ["export"],
        ["report"],
        ["status"],
        ["show"],
        ["compare"],
        ["verify"],
        ["submit"],
    ],
)
def test_help_is_quick_and_loads_neither_torch_nor_ray(arguments):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        answer = saliency(*arguments, "--help")
        seconds.append(time.perf_counter() - started)
        assert answer.returncode == 0
        assert "saliency" in answer.stdout
        if min(seconds) < 1.5:
            break  # others may take the processor's time
    assert min(seconds) < 1.5
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobs.cli", *arguments, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    assert not imported & {"torch", "ray", "timm", "pyarrow"}


def test_every_option_is_documented():
    answer = saliency("explain", "--help").stdout
    groups = (InputConfig, ModelConfig, MethodConfig, ExecutionConfig)
    named = {"name": "model", "storage": "input-storage"}
    for group in groups:
        for option in fields(group):
            assert f"--{named.get(option.name, option.name.replace('_', '-'))}" in answer


def test_the_demo_tells_what_is_wrong_with_its_output():
    answer = saliency("demo", "--out", "/proc/nothing")
    assert answer.returncode == 2
    assert "--out: " in answer.stdout
    assert "Traceback" not in answer.stderr


def test_bad_input_exits_2_with_a_line_a_problem(tmp_path):
    """A name between colons is told as it is, and not as a picture."""
    answer = saliency(
        "explain", "--images", str(tmp_path / ":smile:"), "--model", "no_such_vit",
        "--checkpoint", "random:0", "--target", ":ant:", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert answer.returncode == 2
    lines = answer.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["--target", "input", "--model"]
    assert "got ':ant:'" in lines[0]
    assert f"{tmp_path}/:smile:" in lines[1]
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("arguments", [["explain"], ["explain", "--block", "last"], ["nonsense"]])
def test_a_command_line_that_does_not_parse_exits_2(arguments):
    assert saliency(*arguments).returncode == 2


def test_a_cluster_of_our_own_gets_a_secret_token_and_any_other_is_left_alone(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    set_ray_environment("10.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    set_ray_environment(None)
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that monkeypatch takes back what is set below
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    set_ray_environment(None)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


KEPT = """
import atexit, os, sys
from jobs import cli

class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken down")

kept = Kept()
atexit.register(os.write, 1, b"never called: registered before the command")
start = cli.run
cli.run = lambda command: atexit.register(print, "said at the exit") and start(command)
sys.argv = ["saliency", "verify", sys.argv[1]]
cli.main()
"""


def test_a_command_ends_without_taking_the_interpreter_down(finished):
    """In which threads of Arrow's aborted one in twenty commands that had read a table."""
    command = [sys.executable, "-c", KEPT, finished.out]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout.endswith("class heatmaps agree\nsaid at the exit\n"), ended.stdout
    command[-1] += "-nowhere"
    assert subprocess.run(command, capture_output=True, check=False).returncode == Exit.BAD_INPUT


def test_a_command_whose_output_is_closed_ends_as_others_do(finished):
    command = ["sh", "-c", 'exec "$@" >&-', "-", sys.executable, "-m", "jobs.cli", "verify"]
    ended = subprocess.run([*command, finished.out], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_no_command_is_aborted_at_its_end(finished):
    """Six at once on two cores, as that is what makes Arrow's threads late."""
    command = [sys.executable, "-m", "jobs.cli", "verify", finished.out]
    with ThreadPoolExecutor(6) as pool:
        ended = list(
            pool.map(
                lambda _: subprocess.run(command, capture_output=True, text=True, check=False),
                range(90),
            )
        )
    assert {(process.returncode, process.stderr) for process in ended} == {(0, "")}
