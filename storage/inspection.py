"""What must be known of a manifest before it is planned, from one pass over its rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.columns import IN_PARQUET
from storage.digests import TableDigest

Label = str | int | None


@dataclass(frozen=True)
class Inspection:
    """`digest`: sha256, as hex, of the rows; `labels`: how many rows have each; `groups`: for each
    file that holds images, how many rows each of its row groups has, a tar being one group.
    """

    rows: int
    digest: str
    labels: Mapping[Label, int]
    groups: tuple[tuple[int, ...], ...]


def inspect(tables: Callable[[], Iterator[pa.Table]]) -> Inspection:
    """Read all rows once, and again only to name image_ids that occur twice.

    Memory grows by 8 bytes a row, a hash of each image_id, and with each further label. Raises
    ValueError for repeated image_ids and for a label that is text in some rows and an integer in
    others.
    """
    digest, labels = TableDigest(), Counter[Label]()
    hashes: list[NDArray[np.uint64]] = []
    groups, hashed = _Groups(), _Hasher()
    for table in tables():
        digest.update(table)
        counts = pc.value_counts(table.column("label"))
        values, times = (counts.field(name).to_pylist() for name in ("values", "counts"))
        labels.update(dict(zip(values, times, strict=True)))
        hashes.append(hashed(table.column("image_id")))
        groups.add(table)
    rows = sum(map(len, hashes))
    _refuse_repeated(np.concatenate([np.empty(0, np.uint64), *hashes]), tables)
    return Inspection(rows, digest.hexdigest(), labels, groups.counts())


class _Hasher:
    """64-bit hashes of texts, in their order."""

    def __init__(self) -> None:
        self.database = duckdb.connect(config={"threads": "1"})  # one thread keeps the order

    def __call__(self, texts: pa.ChunkedArray) -> NDArray[np.uint64]:
        self.database.register("texts", pa.table({"text": texts}))
        found = self.database.sql("SELECT hash(text) FROM texts").to_arrow_table().column(0)
        return np.asarray(found, np.uint64)


def _refuse_repeated(hashes: NDArray[np.uint64], tables: Callable[[], Iterator[pa.Table]]) -> None:
    hashes.sort()
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(repeated):
        return
    counts: Counter[str] = Counter()
    hashed = _Hasher()
    for table in tables():
        ids = table.column("image_id")
        counts.update(ids.filter(pa.array(np.isin(hashed(ids), repeated))).to_pylist())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:  # else two ids that differ have one hash
        is_web = any(name.startswith(("http://", "https://")) for name in twice)
        why = " (of a url the part behind ? does not count)" if is_web else ""
        raise ValueError(
            f"{len(twice)} image_ids occur more than once: the first are {twice[:5]}{why}. Give "
            "each row an image_id of its own (--id-column)"
        )


class _Groups:
    """Counts how many consecutive rows lie in the same file, and in the same row group of it."""

    def __init__(self) -> None:
        self.files: list[tuple[str, list[int]]] = []
        self.group: int | None = None

    def add(self, table: pa.Table) -> None:
        if table.num_columns == len(("image_id", "uri", "label")):
            return
        has_groups = IN_PARQUET[0] in table.column_names
        numbers = table.column(IN_PARQUET[0]).to_numpy() if has_groups else np.zeros(len(table))
        uris = table.column("uri").combine_chunks().dictionary_encode()
        codes = uris.indices.to_numpy()
        is_new = (codes[1:] != codes[:-1]) | (numbers[1:] != numbers[:-1])
        starts = np.concatenate([[0], np.flatnonzero(is_new) + 1, [len(table)]])
        for start, stop in pairwise(starts):
            if start < stop:
                uri = uris.dictionary[int(codes[start])].as_py()
                self._count(uri, int(numbers[start]), int(stop - start))

    def _count(self, uri: str, group: int, rows: int) -> None:
        if not self.files or self.files[-1][0] != uri:
            self.files.append((uri, [rows]))
        elif group == self.group:
            self.files[-1][1][-1] += rows
        else:
            self.files[-1][1].append(rows)
        self.group = group

    def counts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(groups) for _, groups in self.files)
