"""Which rows of a list are explained: a condition, classes, new ones only, a sample, the first."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.shown import printable

# A sample is thinned out when it holds so many rows beyond what is asked for.
_SLACK = 2**18


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted; what is None or empty selects nothing away.

    In this order: `where` (a condition in DuckDB's SQL on a row's columns), `classes` (labels as
    text), `known` (image_ids that are done already), `sample` (so many rows drawn without
    replacement by `seed`, kept in order), `limit` (the first so many).
    """

    where: str | None = None
    classes: tuple[str, ...] = ()
    known: pa.Array | None = field(default=None, repr=False)
    sample: int | None = None
    seed: int = 0
    limit: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether no row is selected away."""
        return self == Selection(seed=self.seed)

    def of(self, rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The manifest rows that are selected; `where` is the reader's, which has all columns."""
        if self.classes:
            rows = _of_classes(rows, self.classes)
        if self.known is not None:
            rows = _without(rows, self.known)
        if self.sample is not None:
            rows = _sampled(rows, self.sample, self.seed)
        return rows if self.limit is None else _limited(rows, self.limit)


class Condition:
    """A condition in SQL, on one row at a time. Raises ValueError where it is none."""

    def __init__(self, where: str) -> None:
        self.where = where
        # One thread keeps the rows in order; a condition has no business with files.
        self.database = duckdb.connect(config={"threads": "1", "enable_external_access": "false"})
        query = f"SELECT 1 WHERE (\n{where}\n)"
        (row,) = self.database.execute("SELECT json_serialize_sql($1)", [query]).fetchall()
        try:
            parsed = json.loads(row[0])
        except RecursionError:
            raise ValueError("--where: the condition is nested too deeply") from None
        if parsed["error"]:
            raise ValueError(f"--where {where!r} is no SQL condition: {parsed['error_message']}")
        if not _is_only_where(parsed) or re.search(r'"class": ?"(SUBQUERY|WINDOW)"', row[0]):
            raise ValueError(f"--where {where!r}: a condition is on one row, so it holds no SELECT")

    def rows(self, table: pa.Table) -> pa.Array:
        """The numbers of the rows of `table` that meet the condition, in order."""
        numbered = table.append_column("__row", pa.array(np.arange(len(table))))
        try:
            self.database.register("manifest", numbered)
            found = self.database.sql(f"SELECT __row FROM manifest WHERE (\n{self.where}\n)")
            return found.to_arrow_table().column(0).combine_chunks()
        except duckdb.Error as error:
            reason = str(error).split("\n\n")[0].replace("\n", " ")
            raise ValueError(f"--where {self.where!r}: {reason}") from error
        finally:
            self.database.unregister("manifest")


def _is_only_where(parsed: dict[str, Any]) -> bool:
    """Whether one SELECT was parsed that has nothing but a condition: a closing parenthesis in the
    text may begin a UNION, ORDER BY, LIMIT or a second statement.
    """
    node = parsed["statements"][0]["node"]
    clauses = ("modifiers", "group_expressions", "having", "qualify", "sample")
    return (
        len(parsed["statements"]) == 1
        and node["type"] == "SELECT_NODE"
        and not any(node[clause] for clause in clauses)
    )


def _of_classes(tables: Iterator[pa.Table], classes: tuple[str, ...]) -> Iterator[pa.Table]:
    """The rows whose label is one of `classes`; ValueError at the end for a class without rows."""
    wanted = pa.array(classes, pa.string())
    found: set[str | None] = set()
    for table in tables:
        labels = table.column("label").cast(pa.string())
        found |= set(pc.unique(labels).to_pylist())
        yield table.filter(pc.fill_null(pc.is_in(labels, wanted), False))
    missing = [name for name in classes if name not in found]
    if missing:
        there = sorted(name for name in found if name is not None)
        shown = f"{', '.join(there[:20])}{', ...' if len(there) > 20 else ''}" or "no labels at all"
        message = f"--classes: no row has the label {', '.join(missing)}; there are {shown}"
        raise ValueError(printable(message))


def _without(tables: Iterator[pa.Table], known: pa.Array) -> Iterator[pa.Table]:
    """The rows whose image_id is not among the `known`."""
    for table in tables:
        yield table.filter(pc.invert(pc.is_in(table.column("image_id"), known)))


def _sampled(tables: Iterator[pa.Table], count: int, seed: int) -> Iterator[pa.Table]:
    """`count` rows drawn without replacement, in their order; fewer where there are no more.

    Each row draws a number, and the rows with the smallest stay.
    """
    random = np.random.default_rng(seed)
    kept: list[pa.Table] = []
    draws = np.empty(0)
    for table in tables:
        kept.append(table)
        draws = np.concatenate([draws, random.random(len(table))])
        if len(draws) > count + _SLACK:
            kept, draws = _smallest(kept, draws, count)
    kept, _ = _smallest(kept, draws, count)
    yield from kept


def _smallest(
    tables: list[pa.Table], draws: np.ndarray, count: int
) -> tuple[list[pa.Table], np.ndarray]:
    if not tables:
        return [], draws
    chosen = np.sort(np.argsort(draws, kind="stable")[:count])
    return [pa.concat_tables(tables).take(pa.array(chosen))], draws[chosen]


def _limited(tables: Iterator[pa.Table], count: int) -> Iterator[pa.Table]:
    """The first `count` rows; no more of the list is read than they need."""
    left = count
    for table in tables:
        yield table.slice(0, left)
        left -= min(left, len(table))
        if left == 0:
            return
