"""The command as a shell sees it: help without torch or Ray, exit codes, lines, no traces."""

import os
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from jobs.cli import set_ray_environment
from jobs.config import ExecutionConfig, InputConfig, MethodConfig, ModelConfig


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
    answer = saliency(
        "explain", "--images", str(tmp_path / "nowhere"), "--model", "no_such_vit",
        "--checkpoint", "random:0", "--target", "best", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert answer.returncode == 2
    lines = answer.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["--target", "input", "--model"]
    assert "Traceback" not in answer.stderr


def test_names_between_colons_are_told_as_they_are_and_not_as_pictures(tmp_path):
    answer = saliency(
        "explain", "--images", str(tmp_path / ":smile:"), "--model", "vit_tiny_patch16_224",
        "--checkpoint", "random:0", "--method", "reciprocam:-1:9x9", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert answer.returncode == 2
    assert f"{tmp_path}/:smile:" in answer.stdout
    assert "got 'reciprocam:-1:9x9'" in answer.stdout


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
