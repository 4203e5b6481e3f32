"""The notebook runs as it stands, and what it shows was made by running it."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "explain.ipynb"


def cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> list[set[str]]:
    """What kinds of things a cell puts out; an image is one, whichever formats it is kept in."""
    kinds = [set(output.get("data", {output.output_type: ""})) for output in cell.outputs]
    return [{kind.replace("image/png", "image/jpeg") for kind in each} for each in kinds]


@pytest.fixture
def demo_run(request: pytest.FixtureRequest) -> str:
    """SALIENCY_DEMO where it names a whole demo, else the tests' own."""
    named = os.environ.get("SALIENCY_DEMO")
    return named or request.getfixturevalue("demonstration").out


def test_what_is_stored_was_run_from_top_to_bottom_and_names_no_machine():
    stored = nbformat.read(NOTEBOOK, 4)
    assert [cell.execution_count for cell in cells(stored)] == [
        number + 1 for number in range(len(cells(stored)))
    ]
    outputs = [output for cell in cells(stored) for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"execute_result"}
    assert sum("image/jpeg" in output.data for output in outputs) >= 5
    assert sum("text/html" in output.data for output in outputs) >= 3
    content = NOTEBOOK.read_text()
    assert len(content) < 1_000_000
    for place in ("/home", "/root", "/tmp", "/work", "site-packages", "file://"):
        assert place not in content


@pytest.mark.slow
def test_it_runs_and_shows_the_same_kinds_of_things(demo_run, monkeypatch):
    monkeypatch.setenv("SALIENCY_DEMO", demo_run)
    stored, run = (nbformat.read(NOTEBOOK, 4) for _ in range(2))
    where = {"metadata": {"path": str(ROOT)}}
    NotebookClient(run, timeout=120, kernel_name="python3", resources=where).execute()
    for before, after in zip(cells(stored), cells(run), strict=True):
        assert shown(after) == shown(before), before.source
