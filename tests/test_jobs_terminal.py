"""What names, labels and servers say reaches a terminal as text, and never as a command to it."""

import io
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from jobs.progress import RunProgress
from jobs.terminal import Terminal, plain

EVIL = "a\x1b]0;owned\x07\x1b[2Jb\x9b31mc\u202egpj.exe\x08\x7f"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain_terminal() -> Terminal:
    return Terminal(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)


def told(console: Terminal) -> str:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("style", [None, "red"])
def test_control_characters_are_written_as_text(style: str | None) -> None:
    console = plain_terminal()
    console.print(EVIL, markup=False, style=style)
    console.print(Text(EVIL), Panel(EVIL, title=EVIL))
    table = Table(title=EVIL)
    table.add_row(EVIL, Text(EVIL))
    console.print(table)
    assert not OBEYED.search(told(console))
    assert told(console).startswith(r"a\x1b]0;owned\x1b[2Jb\x9b31mc\u202egpj.exe")


def test_lines_and_letters_stay_as_they_are() -> None:
    console = plain_terminal()
    console.print("naïve 日本語\n[bold] 👍🏽", markup=False)
    assert told(console) == "naïve 日本語\n[bold] 👍🏽\n"
    assert plain("a\nb\x1b") == "a\nb\\x1b"


def test_a_live_bar_still_moves_the_cursor_and_styles_are_kept() -> None:
    console = Terminal(
        file=io.StringIO(), force_terminal=True, width=200, color_system="standard", highlight=False
    )
    with RunProgress(console, images=10, done=0) as progress:
        progress.show(1, 1)
        progress.tell(f"a replica was lost: {EVIL}")
        progress.advance(5, 1)
        progress.show(1, 1)
        progress.bar.refresh()
    with Progress(console=console) as bar:
        bar.advance(bar.add_task("[red]work[/red]", total=2))
        bar.refresh()
    text = told(console)
    assert "\x1b[2K" in text  # the bar's own line is drawn again
    assert "\x1b[31mwork" in text
    assert "5/10" in text
    for command in ("\x1b]0;", "\x1b[2J", "\x07", "\x9b", "\u202e"):
        assert command not in text
    assert r"a replica was lost: a\x1b]0;owned" in text


def saliency(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "jobs.cli", "explain", "--checkpoint", "random:0"]
    return subprocess.run([*command, *arguments], capture_output=True, check=False)


@pytest.mark.slow
def test_a_label_a_column_and_a_file_name_reach_no_terminal_raw(tmp_path: Path) -> None:
    model = ("--model", "vit_tiny_patch16_224", "--out", str(tmp_path / "run"), "--dry-run")
    (tmp_path / "m.jsonl").write_text('{"uri": "a.jpg", "label": "\\u001b[2J\\nforged: line"}\n')
    (tmp_path / "c.jsonl").write_text('{"\\u001b[2J\\nforged: line": "a.jpg"}\n')
    (tmp_path / "names.txt").write_text("\x1b[2Jant\nbee\n")
    odd = tmp_path / "\x1b[2J\nforged: line"
    odd.mkdir()
    for given in (
        ("--manifest", str(tmp_path / "m.jsonl"), "--classes", "cat"),
        ("--manifest", str(tmp_path / "c.jsonl")),
        ("--images", str(odd)),
        ("--manifest", str(tmp_path / "m.jsonl"), "--class-names", str(tmp_path / "names.txt"),
         "--target", "label", "--model-args", '{"num_classes": 2}'),
    ):  # fmt: skip
        answer = saliency(*given, *model)
        said = answer.stdout.decode()
        assert answer.returncode == 2, said
        assert r"\x1b[2J" in said
        assert not OBEYED.search(said)
        assert not any(line.startswith("forged") for line in said.splitlines())


def test_a_bug_s_trace_is_text_too() -> None:
    try:
        raise KeyError(Path(EVIL), "x") from OSError(EVIL)
    except KeyError:
        text = plain(traceback.format_exc())
    assert "Traceback (most recent call last):\n" in text
    assert not OBEYED.search(text)
