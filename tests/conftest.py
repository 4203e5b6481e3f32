"""How the tests run, and where their fixtures are."""

import os
from typing import Any

import pytest
from xdist import is_xdist_controller
from xdist.scheduler import LoadScopeScheduling

# `uv run` would make Ray's workers build an environment without the test dependencies.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
# The clusters of the tests listen on this machine only and live as long as the tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
# More threads than cores compute here, of two pytests and of their clusters' replicas, and one that
# spins until another has its turn keeps that one from it: it waits asleep.
os.environ["OMP_WAIT_POLICY"] = "passive"

pytest_plugins = [
    "tests.fixtures_places",
    "tests.fixtures_explainer",
    "tests.fixtures_runs",
    "tests.fixtures_browser",
    "tests.fixtures_audited",
]

EXPORTS = ("carriers", "coco", "fiftyone", "huggingface", "relabel", "virelay")
# Files whose tests share a run that is dear to make: one process has them all.
SHARING = {
    "test_docs_notebook.py": "demo",
    "test_jobs_audit.py": "demo",
    "test_jobs_demo.py": "demo",
    "test_jobs_elastic.py": "undisturbed",
    "test_jobs_losses.py": "undisturbed",
    **dict.fromkeys((f"test_jobs_export_{name}.py" for name in EXPORTS), "audited"),
    "test_jobs_report.py": "audited",
    "test_jobs_show.py": "audited",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-size", action="store_true", help="also explain a few models at their own size"
    )


class WholeFiles(LoadScopeScheduling):
    """Of the two processes each takes whole files, and one all that share a run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SHARING.get(file.rpartition("/")[2], file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles:
    return WholeFiles(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import timm before the explainer, under whose hook all of timm would be compiled anew."""
    if not is_xdist_controller(session):  # which runs no test
        import timm  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are fastest on one thread."""
    import torch

    torch.set_num_threads(1)
