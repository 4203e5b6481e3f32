"""The house: who may know whom, what is ours, and that docs and pins say what is so."""

import ast
import importlib.metadata
import importlib.util
import itertools
import re
import sysconfig
import tomllib
from pathlib import Path

import pytest

from storage import schema

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jobs", "explainer", "storage")
# Of Ray `metrics` knows ray.util.metrics alone, the last two its Jobs API.
RAY_ROOMS = {
    *("cluster.py", "pool.py", "replica.py", "rerun_replica.py"),
    *("metrics.py", "submit.py", "follow.py"),
}


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("explainer", {"jobs", "storage", "ray", "pyarrow", "fsspec", "s3fs"}),
        ("storage", {"jobs", "explainer", "ray", "torch", "timm"}),
    ],
)
def test_explainer_and_storage_know_neither_each_other_nor_ray(package, strangers):
    for path in (ROOT / package).rglob("*.py"):
        assert not imports(path) & strangers, path


def test_only_the_pool_the_replica_and_the_run_know_ray():
    knowing = {path.name for path in (ROOT / "jobs").glob("*.py") if "ray" in imports(path)}
    assert knowing <= RAY_ROOMS


@pytest.mark.parametrize("package", PACKAGES)
def test_the_generic_package_names_are_ours(package):
    assert set(importlib.metadata.packages_distributions()[package]) == {"saliency-jobs"}
    assert Path(importlib.util.find_spec(package).origin).is_relative_to(ROOT)


def test_the_page_about_the_house_names_every_module_once():
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    names = [path.name for path in modules if not path.name.startswith("__")]
    assert sorted(re.findall(r"[a-z_]+\.py\b", page.partition("    jobs/")[2])) == sorted(names)


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_what_is_installed_is_what_is_pinned():
    project = pyproject()
    pinned = project["project"]["dependencies"] + project["tool"]["uv"]["constraint-dependencies"]
    pinned += itertools.chain(*project["dependency-groups"].values())
    versions = {}
    for requirement in pinned:
        match = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==(\S+)", requirement)
        assert match, f"{requirement} is no exact version"
        versions[match[1].lower().replace("_", "-")] = match[2]
    own = {"saliency-jobs", "pip", "setuptools"}
    # Of the environment alone: Ray, once imported, adds a folder of its own to the path.
    installed = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    for distribution in installed:
        name = distribution.name.lower().replace("_", "-")
        if name not in own:
            assert versions.get(name) == distribution.version, name


def test_the_readme_is_short_and_its_columns_are_the_schema():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 150
    table = schema.markdown(schema.explanations((14, 14)))
    assert table.replace("float16[196]", "float16[h*w]") in readme
