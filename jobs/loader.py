"""Fetch and decode one batch of a shard: what a loading task does, without Ray."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from explainer.preprocess import Decoded, Preprocessing, decode
from storage.images import Fetched, Reading, fetch


@dataclass(frozen=True)
class Batch:
    """Images of a run of manifest rows, in their order.

    `images` holds one record a row, without crops; `crops` those of the rows whose status is ok.
    `sizes` are the files' bytes; None where the file could not be fetched.
    """

    images: list[Decoded]
    sizes: list[int | None]
    crops: UInt8[np.ndarray, "ok 3 height width"]
    fetch_seconds: float
    decode_seconds: float


def load_batch(
    rows: pa.Table,
    reading: Reading,
    preprocessing: Preprocessing,
    crashed: Mapping[int, str] | None = None,
) -> Batch:
    """Fetch and decode the images of manifest rows; one that fails keeps its place with a status.

    Rows at the positions of `crashed` are not touched; their errors are there. Raises
    StorageUnavailable where the storage, not an image, is at fault.
    """
    started = time.perf_counter()
    fetched = _fetch(rows, reading, crashed or {})
    fetched_at = time.perf_counter()
    decoded = [_decode(item, preprocessing) for item in fetched]
    crops = [image.crop for image in decoded if image.crop is not None]
    stacked = np.empty((len(crops), 3, *preprocessing.input_size), dtype=np.uint8)
    return Batch(
        images=[replace(image, crop=None) for image in decoded],
        sizes=[None if item.data is None else len(item.data) for item in fetched],
        crops=np.stack(crops, out=stacked) if crops else stacked,
        fetch_seconds=fetched_at - started,
        decode_seconds=time.perf_counter() - fetched_at,
    )


def _fetch(rows: pa.Table, reading: Reading, crashed: Mapping[int, str]) -> list[Fetched]:
    touched = [position for position in range(len(rows)) if position not in crashed]
    fetched = fetch(rows.take(pa.array(touched, pa.int64())), reading)
    for position, error in sorted(crashed.items()):
        fetched.insert(position, Fetched(None, "crashed", error))
    return fetched


def _decode(item: Fetched, preprocessing: Preprocessing) -> Decoded:
    if item.data is None:
        return Decoded(item.status, item.error)
    return decode(item.data, preprocessing)
