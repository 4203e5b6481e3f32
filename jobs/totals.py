"""Whether summary.json and class_heatmaps.parquet are what a run's parts add up to."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from jobs.aggregate import Aggregate, class_heatmaps
from storage.digests import table_digest
from storage.formats import damage_is_bad_input
from storage.runs import Run


def unlike(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for every value that is not as wanted."""
    return [
        f"{where}: {name} is {found.get(name)!r}; it should be {want!r}"
        for name, want in wanted.items()
        if found.get(name) != want
    ]


def total_problems(
    run: Run, summary: Mapping[str, Any], result: Aggregate, grid: tuple[int, int]
) -> Iterator[str]:
    """What of the totals of a finished run is not that of its parts, which `result` sums."""
    wanted = {
        "run": run.id,
        "rows": result.images,
        "statuses": dict(sorted(result.statuses.items())),
        "parts": result.parts,
        "parts_digest": result.digest,
        "classes_explained": len(result.names),
    }
    yield from unlike("summary.json", summary, wanted)
    where = run.class_heatmaps.name
    try:
        with damage_is_bad_input():
            stored = run.read_class_heatmaps()
            digest = table_digest(stored)
    except (OSError, ValueError, TypeError) as error:
        yield f"{where} cannot be read: {error}"
        return
    told = {key.decode(): value.decode() for key, value in (stored.schema.metadata or {}).items()}
    yield from unlike(where, told, {"run": run.id, "parts_digest": result.digest})
    fresh = class_heatmaps(result, grid)
    if digest != table_digest(fresh):
        yield f"{where}: {_difference(stored, fresh)}"


def _difference(stored: pa.Table, fresh: pa.Table) -> str:
    """The first column in which a table is not the fresh one."""
    if len(stored) != len(fresh) or stored.column_names != fresh.column_names:
        return (
            f"it has {len(stored)} rows of {len(stored.column_names)} columns; a fresh aggregation "
            f"has {len(fresh)} of {len(fresh.column_names)}"
        )
    columns = (
        name
        for name in fresh.column_names
        if table_digest(stored.select([name])) != table_digest(fresh.select([name]))
    )
    return f"column {next(columns)} is not that of a fresh aggregation of the parts"
