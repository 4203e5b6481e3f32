"""All parts of a run: read once, in order, by several threads, and checked while they pass."""

import io
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.digests import table_digest
from storage.formats import damage_is_bad_input
from storage.runs import Run, part_name
from storage.schema import CONTENT_DIGEST

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DIGEST = CONTENT_DIGEST.encode()
# In a part's metadata: how many of its images have each status, as JSON.
STATUSES = "statuses"


class PartsDamaged(ValueError):  # noqa: N818 - a statement about a run
    """A part holds other rows than it says, or rows out of their order."""


class Parts:
    """A run's parts, in the order of their shards; `metadata` is what those read so far share."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.metadata: dict[bytes, bytes] = {}
        self._digests: list[bytes] = []
        self._last = (-1, -1)

    @property
    def digest(self) -> str:
        """Over the digests of the parts read so far, as `parts_digest` in summary.json."""
        return sha256(b"".join(self._digests)).hexdigest()

    def read(self, threads: int) -> Generator[pa.Table, None, None]:
        """Every committed part, whole. Raises what `read_whole` raises."""
        committed = sorted(self.run.committed())
        if not committed:
            raise PartsDamaged(f"{self.run.root} has no parts")
        for part in in_order(partial(read_whole, self.run), committed, threads):
            self._check_order(part)
            metadata = part.schema.metadata
            known = self.metadata if self._digests else metadata
            self.metadata = {k: v for k, v in known.items() if metadata.get(k) == v}
            self.metadata.pop(STATUSES.encode(), None)  # equal or not, they are one part's
            self._digests.append(metadata[_DIGEST])
            yield part

    def _check_order(self, part: pa.Table) -> None:
        rows = np.append(self._last[0], part["row"].to_numpy())
        ranks = np.append(self._last[1], pc.fill_null(part["target_rank"], 0).to_numpy())
        steps = np.diff(rows)
        if not np.all((steps > 0) | ((steps == 0) & (np.diff(ranks) > 0))):
            raise PartsDamaged(
                f"{self.run.root}: the parts are not in the order of row and target_rank around "
                f"row {rows[1]}, or repeat rows: was a part copied or renamed?"
            )
        self._last = int(rows[-1]), int(ranks[-1])


def changed_since(root: object, now: str, then: str) -> str:
    """What is wrong with a run whose parts have the digest `now`, and had `then` when it ended."""
    return (
        f"the parts of {root} have the digest {now}, its summary.json has {then}: parts came, went "
        "or changed since the run was finished"
    )


def read_whole(run: Run, index: int) -> pa.Table:
    """A part with all columns, whose rows are those that its content_digest was made of.

    Read before it is parsed: of a stream, Arrow's OSError for a damaged page would be the store's.
    Raises PartsDamaged where it is gone, is no Parquet or has other rows; StorageUnavailable.
    """
    try:
        data = run.part(index).read()
        with damage_is_bad_input():
            part = pq.read_table(io.BytesIO(data))
            digest = table_digest(part)
    except (OSError, ValueError, TypeError) as error:
        raise PartsDamaged(f"cannot read a part: {run.part(index)}: {error}") from error
    if (part.schema.metadata or {}).get(_DIGEST, b"") != digest.encode():
        raise PartsDamaged(
            f"{run.root}: the rows of {part_name(index)} are not those that its content_digest was "
            "made of"
        )
    return part


def images_by_status(rows: pa.Table) -> dict[str, int]:
    """How many of a part's images have each status: an image may have many rows."""
    first = rows.filter(pc.fill_null(pc.equal(rows["target_rank"], 0), True))
    counts = first["status"].value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Generator[_Result, None, None]:
    """`work` of each item, in the order of the items; at most `threads` are ahead of the caller."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
