"""What of this program travels to a cluster with a job, and how much that may be."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pathspec import GitIgnoreSpec

from jobs.config import ConfigurationError

SOURCE = Path(__file__).resolve().parents[1]
PACKED = ("jobs", "explainer", "storage")
# What .gitignore says in a checkout; an installed copy has none.
IGNORED = ("__pycache__/",)
# The program has 3 MiB. Ray refuses 500, after packing and hashing them.
MOST_BYTES = 50 * 2**20
LARGEST_TOLD = 3


@contextmanager
def packed(source: Path = SOURCE, most_bytes: int = MOST_BYTES) -> Iterator[Path]:
    """A folder with the program's packages alone, for as long as the context lasts.

    What .gitignore names is left out. Raises ConfigurationError where it would be too large.
    """
    paths = _paths(source)
    _check_size(source, paths, most_bytes)
    with tempfile.TemporaryDirectory(prefix="saliency-") as folder:
        for path in paths:
            copy = Path(folder) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        yield Path(folder)


def _paths(source: Path) -> list[Path]:
    ignore = source / ".gitignore"
    lines = ignore.read_text().splitlines() if ignore.is_file() else []
    ignored = GitIgnoreSpec.from_lines([*lines, *IGNORED])
    found = [path for package in PACKED for path in (source / package).rglob("*")]
    project = source / "pyproject.toml"
    found += [project] if project.is_file() else []
    return sorted(
        path
        for path in found
        if path.is_file() and not ignored.match_file(path.relative_to(source).as_posix())
    )


def _check_size(source: Path, paths: list[Path], most_bytes: int) -> None:
    sizes = {path: path.stat().st_size for path in paths}
    total = sum(sizes.values())
    if total <= most_bytes:
        return
    largest = sorted(paths, key=lambda path: -sizes[path])[:LARGEST_TOLD]
    told = ", ".join(f"{path.relative_to(source)} ({sizes[path] / 2**20:.1f})" for path in largest)
    raise ConfigurationError(
        [
            f"the program's folder {source} has {total / 2**20:.1f} MiB, and at most "
            f"{most_bytes / 2**20:.0f} travel with a job: move away what is none of it, or name it "
            f"in .gitignore; the largest, in MiB: {told}"
        ]
    )
