"""Commands of docs/operations.md are run, and the messages that it quotes are ours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh run\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]
PROGRAMS = {"python": [sys.executable], "saliency": [sys.executable, "-m", "jobs.cli"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_and_the_page_shows_what_it_prints(command, finished, tmp_path):
    places = {"RUN": finished.out, "IMAGES": finished.input.images, "NEW": str(tmp_path / "new")}
    program, *arguments = (places.get(word, word) for word in shlex.split(command))
    done = subprocess.run(
        [*PROGRAMS[program], *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if program == "python":
        lines = done.stdout.splitlines()
        for line in lines[-1:] if "--price-gpu-hour" in arguments else lines:
            assert line in PAGE


def test_every_message_of_the_table_is_in_the_source():
    rows = PAGE.partition("## Troubleshooting")[2].splitlines()
    messages = [found[1] for row in rows if (found := re.match(r"\| `([^`]+)`", row))]
    paths = [path for folder in ("jobs", "storage") for path in (ROOT / folder).glob("*.py")]
    source = "".join(path.read_text() for path in paths)
    assert len(messages) >= 10
    for message in messages:
        assert message in source, message
