"""`--retry-failed`: which shards hold failed images, and a part whose images were tried again."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from jobs.plan import Shard
from storage.runs import Run

READERS = 16
GENERATION = "generation"
FIRST_GENERATION = "1"


def shards_to_retry(run: Run, committed: list[Shard]) -> list[Shard]:
    """The committed shards that hold an image without a map. Raises StorageUnavailable."""

    def has_failed(shard: Shard) -> bool:
        statuses = run.read_part(shard.index, ["status"])["status"]
        return bool(pc.any(pc.not_equal(statuses, "ok")).as_py())

    with ThreadPoolExecutor(READERS, "statuses") as pool:
        failed = pool.map(has_failed, committed)
        return [shard for shard, has in zip(committed, failed, strict=True) if has]


def explained_rows(part: pa.Table) -> list[int]:
    """The manifest rows of a part whose images have maps."""
    explained = part.filter(pc.equal(part["status"], "ok"))
    return sorted(set(explained["row"].to_pylist()))


def merged(part: pa.Table, again: pa.Table) -> pa.Table:
    """A part with the rows of its failed images as they are in `again`; its other rows stay."""
    is_explained = pc.equal(part["status"], "ok")
    failed = part.filter(pc.invert(is_explained))["row"]
    tried = again.filter(pc.is_in(again["row"], failed.combine_chunks()))
    kept = part.filter(is_explained).cast(again.schema)
    return pa.concat_tables([kept, tried]).sort_by(
        [("row", "ascending"), ("target_rank", "ascending")]
    )


def next_generation(part: pa.Table) -> str:
    """The number of the part that takes the place of `part`."""
    known = (part.schema.metadata or {}).get(GENERATION.encode(), FIRST_GENERATION.encode())
    return str(int(known) + 1)
