"""What the README says a reader can run, is run."""

import re
from pathlib import Path

import duckdb
import pandas

ROOT = Path(__file__).resolve().parents[1]


def test_the_queries_of_the_readme_read_a_run_in_one_line_each(finished):
    readme = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "duckdb" in b)
    names = {"duckdb": duckdb, "pandas": pandas}
    lines = [line for line in block.splitlines() if not line.startswith("import ")]
    assert len(lines) == 2
    for line in lines:
        result = eval(line.replace("saliency-demo/", f"{finished.out}/"), names)
        rows = result.fetchall() if "duckdb" in line else result.index.tolist()
        assert 1 <= len(rows) <= 5


def test_every_option_that_the_docs_name_exists():
    from jobs import cli, commands, config, replica_config

    modules = (cli, commands, config, replica_config)
    source = "".join(Path(module.__file__).read_text() for module in modules)
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for document in documents:
        for option in set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", document.read_text())):
            name = option.removeprefix("no-").replace("-", "_")
            known = name in source or f'"{option}"' in source
            assert known or option in OTHERS, (document.name, option)


def test_every_test_that_the_readme_names_as_a_guarantee_exists():
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Guarantees")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in sources, name


# Options of other programs, and of the benchmarks.
OTHERS = {"check", "threads", "repeats", "methods", "batch", "out", "epochs", "seed", "every"} | {
    *("models", "carriers", "clean", "reuse", "tune", "tuning", "seconds", "rows", "width"),
    *("parts", "rounds", "log", "report", "cases", "only", "base"),
    *("gpus", "images-per-second-gpu", "decode-per-core", "bytes-per-image"),
    *("price-gpu-hour", "price-core-hour"),
    # Of Ray, AWS, Docker and Kubernetes.
    *("head", "working-dir", "stack-name", "template-file", "capabilities"),
    *("parameter-overrides", "file", "tag", "filename"),
    *("node-id", "reason", "reason-message", "deadline-remaining-seconds"),
}
