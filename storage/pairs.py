"""The rows of two runs, a row an image, joined by image_id: more than fit into memory.

Runs of one manifest are joined as they are read, part by part; of two manifests both are first
copied into a database in a local folder, which DuckDB joins by way of that folder. Either way the
joined rows, without their maps, are kept in it for the questions below.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import StorageUnavailable

MEMORY = "1GB"  # that DuckDB may use before it goes by way of the folder
_OF_AN_IMAGE = (
    *("row", "label", "label_name", "status", "predicted", "predicted_name", "probability"),
    *("target", "target_name", "peak_row", "peak_col"),
)
_KEYS = ("predicted_key", "target_key")
_SIDES = ", ".join(f"{s}.{name} AS {name}_{s}" for s in "ab" for name in (*_OF_AN_IMAGE, *_KEYS))
# First rows of images, and the map of the class that run A explains first.
_JOIN = f"""
    SELECT coalesce(a.image_id, b.image_id) AS image_id,
        md5_number_lower(coalesce(a.image_id, b.image_id)) AS draw, {_SIDES},
        m.image_id IS NOT NULL AS has_maps, a.map AS map_a, m.map AS map_b
    FROM (SELECT * FROM run_a WHERE rank = 0) AS a
    FULL JOIN (SELECT * FROM run_b WHERE rank = 0) AS b ON a.image_id = b.image_id
    LEFT JOIN (SELECT * FROM run_b WHERE map IS NOT NULL) AS m
        ON m.image_id = a.image_id AND m.target_key = a.target_key AND a.map IS NOT NULL
"""
_BATCH_ROWS = 16_384
Side = Literal["a", "b"]
# Correlations are counted in steps of a thousandth: a median of any number in bounded memory.
_STEPS = 1000
_RIGHT = "coalesce(predicted_{0} = label_{0}, false)"
_RIGHT_A, _RIGHT_B = _RIGHT.format("a"), _RIGHT.format("b")
# Images whose rightness can be held against each other.
_LABELLED = (
    "label_a IS NOT NULL AND label_b IS NOT NULL AND label_name_a = label_name_b "
    "AND predicted_a IS NOT NULL AND predicted_b IS NOT NULL"
)
_OUTCOMES = (
    f"count(*), count(*) FILTER ({_RIGHT_A}), count(*) FILTER ({_RIGHT_B}), "
    f"count(*) FILTER ({_RIGHT_B} AND NOT {_RIGHT_A}), "
    f"count(*) FILTER ({_RIGHT_A} AND NOT {_RIGHT_B})"
)


@dataclass(frozen=True)
class Join:
    """How two runs belong together.

    `is_of_one_manifest`: the same rows in the same order. `is_of_one_class_list`: a class has the
    same index in both, otherwise it is told by its name, unless that is one of the `ambiguous`.
    `has_maps`: the maps have one grid, of `cells` cells.
    """

    is_of_one_manifest: bool
    is_of_one_class_list: bool
    has_maps: bool
    cells: int
    ambiguous: tuple[str, ...] = ()

    def keys(self, indices: pa.ChunkedArray, names: pa.ChunkedArray) -> pa.ChunkedArray:
        """Texts that are the same for the same class in both runs; null where that is unknown."""
        if self.is_of_one_class_list:
            return indices.cast(pa.string())
        is_ambiguous = pc.is_in(names, pa.array(self.ambiguous, pa.string()))
        return pc.if_else(is_ambiguous, pa.scalar(None, pa.string()), names.cast(pa.string()))


@dataclass(frozen=True)
class Outcomes:
    """Images that are labelled alike and predicted in both runs, and whose answer was right."""

    images: int
    right_a: int
    right_b: int
    became_right: int
    became_wrong: int


@dataclass(frozen=True)
class Totals:
    """Images in both runs, in one alone, and of those in both how many changed in what."""

    both: int
    only_a: int
    only_b: int
    labels_changed: int
    predicted_in_both: int
    predictions_changed: int


@dataclass(frozen=True)
class Pair:
    """An image of both runs: its rows, whether its answers can be compared, and were right."""

    row_a: int
    row_b: int
    is_labelled: bool
    is_right_a: bool
    is_right_b: bool


class Pairs:
    """Joined rows in a database in `folder`. Raises StorageUnavailable where that is full."""

    def __init__(self, folder: Path, join: Join) -> None:
        self.join = join
        self.folder = folder
        self._database = duckdb.connect(folder / "pairs.duckdb", config={"memory_limit": MEMORY})
        self._database.execute("SET preserve_insertion_order = false")
        self._database.begin()

    def close(self) -> None:
        """Let go of the files in the folder."""
        self._database.close()

    def joined(
        self, a: Iterable[pa.Table], b: Iterable[pa.Table]
    ) -> Generator[pa.Table, None, None]:
        """Tables of joined rows, from the parts of both runs in their order.

        The columns of an image's first row (target_rank 0) of each run end in _a and _b; `draw` is
        a number drawn by its image_id; map_a is the first map of run A, and map_b that of the same
        class in run B, as bytes, null where there is none.
        """
        tables = (map(self._read, a), map(self._read, b))
        if self.join.is_of_one_manifest:
            for one, other in _aligned(*tables):
                yield self._join(one, other)
            return
        for name, side in zip(("run_a", "run_b"), tables, strict=True):
            self._copy(name, side)
        with self._room():
            yield from _tables(self._cursor().sql(_JOIN), _BATCH_ROWS)

    def keep(self, rows: pa.Table) -> None:
        """Add joined rows, without their maps, to those that are asked about."""
        self._copy("pairs", [rows])

    def totals(self) -> Totals:
        """How many images are where, and how many changed."""
        both = "row_a IS NOT NULL AND row_b IS NOT NULL"
        predicted = "predicted_a IS NOT NULL AND predicted_b IS NOT NULL"
        counted = (
            both,
            "row_b IS NULL",
            "row_a IS NULL",
            f"{both} AND label_name_a IS DISTINCT FROM label_name_b",
            predicted,
            "predicted_key_a <> predicted_key_b",
        )
        counts = ", ".join(f"count(*) FILTER ({condition})" for condition in counted)
        (row,) = self._ask(f"SELECT {counts} FROM pairs")
        return Totals(*row)

    def statuses(self) -> list[tuple[str, str, int]]:
        """Status before, after, and in how many images of both runs it is another."""
        return self._ask(
            "SELECT status_a, status_b, count(*) AS n FROM pairs WHERE status_a <> status_b "
            "GROUP BY ALL ORDER BY n DESC, status_a, status_b"
        )

    def outcomes(self) -> Outcomes:
        """Of all labelled images."""
        (row,) = self._ask(f"SELECT {_OUTCOMES} FROM pairs WHERE {_LABELLED}")
        return Outcomes(*row)

    def outcomes_of_classes(self) -> dict[int, tuple[str, Outcomes]]:
        """By the label's class in run A: the label as the manifest has it, and its images."""
        rows = self._ask(
            f"SELECT label_a, min(label_name_a), {_OUTCOMES} FROM pairs WHERE {_LABELLED} "
            "GROUP BY label_a ORDER BY label_a"
        )
        return {target: (name, Outcomes(*counts)) for target, name, *counts in rows}

    def correlations_of_classes(self) -> dict[int, tuple[int, float | None]]:
        """By class in run A: images with a map of it in both, and the median correlation of these
        maps, to a thousandth; None where all are constant."""
        rows = self._ask(
            f"SELECT target_a, round(map_correlation * {_STEPS})::INT AS step, count(*) "
            "FROM pairs WHERE has_maps GROUP BY ALL ORDER BY target_a, step"
        )
        counts: dict[int, list[tuple[int | None, int]]] = {}
        for target, step, count in rows:
            counts.setdefault(target, []).append((step, count))
        return {target: _median(found) for target, found in counts.items()}

    def names(self) -> tuple[dict[int, str], dict[int, str]]:
        """The names of the classes that run A and run B predict or explain, by index."""
        found = []
        for side in ("a", "b"):
            rows = self._ask(
                f"SELECT predicted_{side}, any_value(predicted_name_{side}) FROM pairs "
                f"WHERE predicted_{side} IS NOT NULL GROUP BY 1 UNION "
                f"SELECT target_{side}, any_value(target_name_{side}) FROM pairs "
                f"WHERE target_{side} IS NOT NULL GROUP BY 1"
            )
            found.append(dict(rows))
        return found[0], found[1]

    def images(self, side: Side, rows: NDArray[np.int64]) -> dict[int, Pair]:
        """Those of some rows of one run that are in both, by that run's row."""
        self._database.register("wanted", pa.table({"wanted_row": rows}))
        found = self._ask(
            f"SELECT row_{side}, row_a, row_b, {_LABELLED}, {_RIGHT_A}, {_RIGHT_B} FROM pairs "
            "WHERE row_a IS NOT NULL AND row_b IS NOT NULL "
            f"AND row_{side} IN (SELECT wanted_row FROM wanted)"
        )
        self._database.unregister("wanted")
        return {row: Pair(*pair) for row, *pair in found}

    def read(self, columns: Iterable[str], rows: int) -> Iterator[pa.Table]:
        """All joined rows in the order of run A, those of run B alone last, in tables of `rows`."""
        flags = f"{_RIGHT_A} AS right_a, {_RIGHT_B} AS right_b"
        known = "*, " + ", ".join(
            f"CASE WHEN label_{s} IS NOT NULL AND predicted_{s} IS NOT NULL THEN r.right_{s} END "
            f"AS is_right_{s}"
            for s in ("a", "b")
        )
        with self._room():
            result = self._cursor().sql(
                f"SELECT {', '.join(columns)} FROM (SELECT {known} FROM "
                f"(SELECT *, {flags} FROM pairs) AS r) ORDER BY row_a NULLS LAST, row_b"
            )
            yield from _tables(result, rows)

    def _ask(self, sql: str) -> list[tuple]:  # type: ignore[type-arg] # as many as the query says
        with self._room():
            return self._database.execute(sql).fetchall()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        """For answers that are read while others are asked for, or rows are kept."""
        with self._room():
            self._database.commit()
            self._database.begin()
            return self._database.cursor()

    def _join(self, one: pa.Table, other: pa.Table) -> pa.Table:
        self._database.register("run_a", one)
        self._database.register("run_b", other)
        with self._room():
            return self._database.sql(_JOIN).to_arrow_table()

    def _read(self, part: pa.Table) -> pa.Table:
        """The columns of a part that are joined; a map is bytes, which DuckDB keeps as they are."""
        rank = pc.fill_null(part["target_rank"], 0)
        columns = {name: part[name] for name in ("image_id", *_OF_AN_IMAGE)}
        for key, of in zip(_KEYS, ("predicted", "target"), strict=True):
            columns[key] = self.join.keys(part[of], part[f"{of}_name"])
        maps = pa.nulls(len(part), pa.binary())
        if self.join.has_maps:
            maps = _as_bytes(part["saliency"].combine_chunks(), self.join.cells)
        return pa.table({**columns, "rank": rank, "map": maps})

    def _copy(self, name: str, tables: Iterable[pa.Table]) -> None:
        for table in tables:
            self._database.register("incoming", table)
            with self._room():
                is_new = not self._database.execute(
                    "SELECT 1 FROM duckdb_tables() WHERE table_name = $1", [name]
                ).fetchall()
                into = f"CREATE TABLE {name} AS" if is_new else f"INSERT INTO {name}"
                self._database.execute(f"{into} SELECT * FROM incoming")
            self._database.unregister("incoming")

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except (
            duckdb.IOException,
            duckdb.OutOfMemoryException,
            duckdb.TransactionException,  # the disk was full when rows were committed
        ) as error:
            raise StorageUnavailable(
                f"the runs cannot be joined in {self.folder.parent}: {error}; set TMPDIR to a "
                "folder with more room"
            ) from error


def _as_bytes(maps: pa.FixedSizeListArray, cells: int) -> pa.FixedSizeBinaryArray:
    """The same memory, seen as so many bytes a map."""
    validity, values = maps.buffers()[0], maps.values.buffers()[1]
    kind = pa.binary(2 * cells)
    return pa.FixedSizeBinaryArray.from_buffers(
        kind, len(maps), [validity, values], offset=maps.offset
    )


def _aligned(a: Iterator[pa.Table], b: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Tables of the same rows of the manifest, from two streams in its order."""
    one, other = next(a, None), next(b, None)
    while one is not None and other is not None:
        until = min(one["row"][-1].as_py(), other["row"][-1].as_py())
        cuts = [int(np.searchsorted(t["row"].to_numpy(), until, "right")) for t in (one, other)]
        yield one.slice(0, cuts[0]), other.slice(0, cuts[1])
        one = one.slice(cuts[0]) if cuts[0] < len(one) else next(a, None)
        other = other.slice(cuts[1]) if cuts[1] < len(other) else next(b, None)
    while one is not None or other is not None:
        if one is not None:
            yield one, one.slice(0, 0)
            one = next(a, None)
        elif other is not None:
            yield other.slice(0, 0), other
            other = next(b, None)


def _tables(result: duckdb.DuckDBPyRelation, rows: int) -> Iterator[pa.Table]:
    for batch in result.to_arrow_reader(rows):
        yield pa.Table.from_batches([batch])


def _median(counts: list[tuple[int | None, int]]) -> tuple[int, float | None]:
    """How many there are, and the median of those that have a step."""
    steps = [(step, count) for step, count in counts if step is not None]
    images = sum(count for _, count in counts)
    total = sum(count for _, count in steps)
    if not total:
        return images, None
    up_to = np.cumsum([count for _, count in steps])
    places = np.searchsorted(up_to, [(total - 1) // 2, total // 2], side="right")
    return images, float(np.mean([steps[place][0] for place in places])) / _STEPS
