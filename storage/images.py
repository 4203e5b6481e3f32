"""A shard's images, read concurrently, each with its own error."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from storage.locations import Location

MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Fetched:
    """One image's bytes, or why there are none.

    `status` is ok | missing | denied | unsupported (a folder, a FIFO, an impossible url) |
    too_large; `error` is one line, null where the status is ok.
    """

    data: bytes | None
    status: str
    error: str | None


def fetch(
    uris: Sequence[str | None],
    options: Mapping[str, Any],
    *,
    concurrency: int = 16,
    max_bytes: int = MAX_BYTES,
) -> list[Fetched]:
    """The images of the rows, in their order; `options` are fsspec's for the images' store.

    Raises StorageUnavailable where the store fails: that is a property of no image.
    """
    with ThreadPoolExecutor(concurrency, "fetch") as pool:
        try:
            return list(pool.map(_fetch_one(options, max_bytes), uris))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the shard is lost: ask no more
            raise


def _fetch_one(options: Mapping[str, Any], max_bytes: int) -> Callable[[str | None], Fetched]:
    def fetch_one(uri: str | None) -> Fetched:
        if not uri:
            return Fetched(None, "missing", "the manifest has no uri for this row")
        try:
            data = Location(uri, options).read(limit=max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            return Fetched(None, "missing", str(error))
        except PermissionError as error:
            return Fetched(None, "denied", str(error))
        # A protocol that is unknown, or whose package is not installed, raises the last two.
        except (IsADirectoryError, ValueError, ImportError) as error:
            return Fetched(None, "unsupported", " ".join(str(error).split()))
        if len(data) > max_bytes:
            return Fetched(None, "too_large", f"more than {max_bytes} bytes, the limit")
        return Fetched(data, "ok", None)

    return fetch_one
