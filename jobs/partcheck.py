"""Whether a part holds exactly the rows that its shard should: each problem is one line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.plan import Shard
from storage import schema
from storage.parts import STATUSES, images_by_status

# Columns that a part has from the manifest, under our name and under the manifest's.
OF_THE_MANIFEST = {"image_id": "image_id", "uri": "uri", "label_name": "label"}
# What an explained image's row has, and no other.
OF_A_TARGET = ("target", "target_name", "target_kind", "target_rank", "saliency", "predicted")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """What all parts of a run have in common: its id, the maps' grid, an image's targets."""

    run: str
    grid: tuple[int, int]
    targets: int


def form_problems(part: pa.Table, index: int, rule: Rule) -> Iterator[str]:
    """What is wrong with a part's columns and metadata, before a row is looked at."""
    wanted = schema.explanations(rule.grid)
    for field in wanted:
        if field.name not in part.column_names and not field.nullable:
            yield f"has no column {field.name}"
        elif field.name in part.column_names and part.schema.field(field.name).type != field.type:
            yield (
                f"column {field.name} is of type {part.schema.field(field.name).type}; the schema "
                f"has {field.type}"
            )
    lacking = [n for n in (*OF_THE_MANIFEST, *OF_A_TARGET) if n not in part.column_names]
    if lacking:
        yield f"has no columns {', '.join(lacking)}"
    metadata = (part.schema.metadata or {}).items()
    told = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata}
    rows, columns = rule.grid
    for key, value in {"run": rule.run, "shard": str(index), "grid": f"{rows}x{columns}"}.items():
        if told.get(key) != value:
            yield f"its metadata say {key} {told.get(key)!r}; it should be {value!r}"


def count_problems(part: pa.Table) -> Iterator[str]:
    """Whether its metadata count its images by status as its rows do; earlier versions' do not."""
    told = (part.schema.metadata or {}).get(STATUSES.encode())
    counted = json.dumps(images_by_status(part), sort_keys=True)
    if told is not None and told != counted.encode():
        yield f"its metadata count images as {told.decode(errors='replace')!r}; its rows: {counted}"


def row_problems(part: pa.Table, shard: Shard, rule: Rule) -> list[str]:
    """Which rows are missing, there too often, not the shard's own, or half filled."""
    rows, is_ok = part["row"].to_numpy(), np.asarray(pc.equal(part["status"], "ok"))
    problems = []
    runs = np.asarray(pc.not_equal(part["run"], rule.run))
    if runs.any():
        problems.append(_first(rows[runs], lambda row: f"row {row} is of another run"))
    is_inside = (rows >= shard.start) & (rows < shard.stop)
    if not is_inside.all():
        own = f"{shard.start} to {shard.stop - 1}"
        problems.append(
            _first(rows[~is_inside], lambda row: f"row {row} is none of its shard's, {own}")
        )
    places, is_ok_inside = rows[is_inside] - shard.start, is_ok[is_inside]
    counted = _count_problems(places[is_ok_inside], places[~is_ok_inside], shard, rule.targets)
    problems += counted or ([] if problems else _order_problems(part, is_ok))
    return [*problems, *_target_problems(part, is_ok)]


def manifest_problems(part: pa.Table, manifest: pa.Table, shard: Shard) -> Iterator[str]:
    """Where the columns from the manifest are not those of the shard's `manifest` rows."""
    rows = part["row"].to_numpy()
    is_inside = (rows >= shard.start) & (rows < shard.stop)
    part, rows = part.filter(pa.array(is_inside)), rows[is_inside]
    wanted = manifest.take(pa.array(rows - shard.start))
    for name, source in OF_THE_MANIFEST.items():
        got, want = part[name], wanted[source].cast(pa.string())
        is_null = pc.xor(got.is_null(), want.is_null())
        differs = np.flatnonzero(np.asarray(pc.fill_null(pc.not_equal(got, want), is_null)))

        def line(at: int, name: str = name, got: pa.Array = got, want: pa.Array = want) -> str:
            return (
                f"{name} of row {rows[at]} is {got[at].as_py()!r}; the manifest has "
                f"{want[at].as_py()!r}"
            )

        if len(differs):
            yield _first(differs, line)


def _count_problems(explained: Integers, others: Integers, shard: Shard, targets: int) -> list[str]:
    """From the places in the shard of the rows with a map, and of the others."""
    maps = np.bincount(explained, minlength=shard.rows)
    without = np.bincount(others, minlength=shard.rows)
    problems = []
    missing = np.flatnonzero(maps + without == 0) + shard.start
    if len(missing):
        problems.append(_first(missing, lambda row: f"row {row} of the manifest is missing"))
    is_right = ((maps == targets) & (without == 0)) | ((maps == 0) & (without <= 1))

    def line(place: int) -> str:
        return (
            f"row {place + shard.start} is there {maps[place]} times with a map and "
            f"{without[place]} times without; it should be there {targets} times with one, or once "
            "without"
        )

    if not is_right.all():
        problems.append(_first(np.flatnonzero(~is_right), line))
    return problems


def _order_problems(part: pa.Table, is_ok: NDArray[np.bool_]) -> list[str]:
    """Of rows that are there as often as they should be: by row, and ranks from 0 in each."""
    rows = part["row"].to_numpy()
    back = np.flatnonzero(np.diff(rows) < 0)
    if len(back):
        return [_first(back, lambda at: f"row {rows[at + 1]} comes after row {rows[at]}")]
    ranks = pc.fill_null(part["target_rank"], -1).to_numpy()
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    lengths = np.diff(np.append(starts, len(rows)))
    wanted = np.where(is_ok, np.arange(len(rows)) - np.repeat(starts, lengths), -1)
    wrong = np.flatnonzero(ranks != wanted)

    def line(at: int) -> str:
        return (
            f"row {rows[at]} has target_rank {ranks[at]}; {wanted[at]} should be there (-1 is null)"
        )

    return [_first(wrong, line)] if len(wrong) else []


def _target_problems(part: pa.Table, is_ok: NDArray[np.bool_]) -> Iterator[str]:
    rows = part["row"].to_numpy()
    for name in OF_A_TARGET:
        wrong = np.asarray(part[name].is_valid()) != is_ok
        if wrong.any():
            yield _first(
                rows[wrong],
                lambda row, name=name: (  # type: ignore[misc]
                    f"row {row}: {name} must be null where the status is not ok, and only there"
                ),
            )


def _first(items: Integers, line: Callable[[int], str]) -> str:
    """The line of the first item, and how many there are besides."""
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    return line(int(items[0])) + more
