"""Whether a run that was disturbed holds what an undisturbed one holds: no row less, more or other.

Every object is read past the faults. Attempts, leases and breadcrumbs are a run's own; so is what a
start that was killed leaves of its attempt to write.
"""

import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from jobs.commands import VerifyConfig
from jobs.verify import verify
from storage.locations import Location

OWN = re.compile(r"attempts/\d+\.json|lease/\d+\.json|breadcrumbs/\d+\.json|\.writable-[0-9a-f]+")
_PART = re.compile(r"explanations/part-\d{8}\.parquet")


@dataclass(frozen=True)
class Objects:
    """Every object of a run, as bytes."""

    data: dict[str, bytes]

    @classmethod
    def read(cls, root: Location) -> "Objects":
        return cls({name: root.child(name).read() for name in sorted(root.walk())})

    @cached_property
    def torn(self) -> list[str]:
        """The objects that cannot be read as what their names say."""
        return [name for name, data in self.data.items() if not _is_whole(name, data)]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all parts that can be read."""
        parts = [name for name in self.data if _PART.fullmatch(name) and name not in self.torn]
        tables = [pq.read_table(io.BytesIO(self.data[name])) for name in parts]
        return [row for table in tables for row in table.to_pylist()]


@dataclass(frozen=True)
class Comparison:
    """How a run differs from the reference, and what `saliency verify` has to say of it."""

    lost: int
    duplicated: int
    different: int
    torn: int
    problems: list[str] = field(default_factory=list)


def compare(reference: Objects, root: Location, storage: Path) -> Comparison:
    """Compare a finished run; `storage` is the file of options that `saliency verify` takes."""
    found = Objects.read(root)
    wanted = {_key(row): repr(row) for row in reference.rows}
    keys = Counter(_key(row) for row in found.rows)
    different = sum(wanted.get(_key(row)) != repr(row) for row in found.rows)
    problems = [f"{name} is torn" for name in found.torn]
    problems += _odd_objects(reference, found)
    console = Console(file=io.StringIO(), width=300)
    if verify(VerifyConfig(root.url, str(storage)), console) != 0:
        problems.append(f"saliency verify: {console.file.getvalue()}")  # type: ignore[attr-defined]
    return Comparison(
        lost=len(wanted.keys() - keys.keys()),
        duplicated=sum(count - 1 for count in keys.values()),
        different=different,
        torn=len(found.torn),
        problems=problems,
    )


def _odd_objects(reference: Objects, found: Objects) -> list[str]:
    """Objects that one has and the other has not, and sums and pictures that are not the same."""
    here = {name for name in found.data if not OWN.fullmatch(name)}
    there = {name for name in reference.data if not OWN.fullmatch(name)}
    odd = [f"{name} is missing" for name in sorted(there - here)]
    odd += [f"{name} is no object of the run" for name in sorted(here - there)]
    for name in sorted(here & there):
        if name.startswith("class_heatmaps") and found.data[name] != reference.data[name]:
            odd.append(f"{name} differs")
    return odd


def _key(row: dict[str, Any]) -> tuple[int, int]:
    return row["row"], row["target_rank"] or 0


def _is_whole(name: str, data: bytes) -> bool:
    try:
        if name.endswith(".parquet"):
            pq.read_table(io.BytesIO(data))
        elif name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".png"):
            Image.open(io.BytesIO(data)).load()
    except (OSError, ValueError):
        return False
    return True
