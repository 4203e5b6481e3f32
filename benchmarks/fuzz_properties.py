"""What holds for any input, one function a target: each returns a verdict, or raises.

Bounds of time and memory are held by whoever calls them.
"""

import ipaddress
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from benchmarks import fuzz_images, fuzz_manifests, fuzz_tars, fuzz_texts
from benchmarks.fuzz_manifests import File
from explainer.preprocess import Preprocessing, decode
from storage.columns import ColumnNames
from storage.errors import Refused
from storage.images import Reading, fetch
from storage.locations import Location
from storage.manifests import Manifest, ManifestError, read_manifest, read_stored
from storage.row_reader import read_rows
from storage.selection import Condition, Selection
from storage.trust import LOCAL_SCHEMES, SCHEMES, check_scheme, is_public, named

STATUSES = {"ok", "truncated", "undecodable", "too_large"}
FETCHED = {"ok", "missing", "denied", "unsupported", "undecodable", "too_large"}
MODEL = Preprocessing((48, 48), (0.48, 0.45, 0.4), (0.27, 0.26, 0.29), 0.875, "center", "bicubic")
_HOWS: dict[str, tuple[ColumnNames, Selection]] = {
    "all": (ColumnNames(), Selection()),
    "where": (ColumnNames(), Selection(where="length(uri) <> 6 AND random() < 2")),
    "wide": (ColumnNames(), Selection(where="label IS NULL OR width < 5 OR uri <> '/1.jpg'")),
    "classes": (ColumnNames(), Selection(classes=("cat",))),
    "few": (ColumnNames(), Selection(sample=3, limit=2)),
    "named": (ColumnNames("path", "class", "id"), Selection()),
    "inner": (ColumnNames(uri="image.path"), Selection(where="image_id <> ''")),
}


def _told(error: Exception) -> str:
    """What an error says, which is something."""
    text = str(error)
    assert text
    return text


def decodes(data: bytes) -> str:
    """An image has a known status both ways, and, where that is ok, a crop of the model's size."""
    fast, exact = decode(data, MODEL), decode(data, replace(MODEL, exact=True))
    assert fast.status in STATUSES
    assert fast.status == exact.status, (fast, exact)
    for decoded in (fast, exact):
        if decoded.status != "ok":
            assert decoded.crop is None
            assert decoded.error
            assert "\n" not in decoded.error
            continue
        assert decoded.error is None
        assert decoded.crop is not None
        assert (decoded.crop.dtype, decoded.crop.shape) == (np.uint8, (3, 48, 48))
        numbers = (*(decoded.mean or ()), decoded.contrast, decoded.sharpness)
        assert len(numbers) == 5
        assert np.isfinite(np.array(numbers, float)).all()
    return fast.status


def lists(file: File) -> str:
    """A manifest has readable rows of unique ids, the same when read again, or a message."""
    names, selection = _HOWS[file.how]
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        place = Location(f"{folder}/m{file.suffix}")
        Path(place.url).write_bytes(file.data)
        try:
            manifest = read_manifest(place, names, selection)
        except ManifestError as error:
            _told(error)
            return "refused"
        rows = _rows(manifest, Location(f"{folder}/stored"))
        ids = rows.column("image_id")
        assert len(rows) == manifest.rows > 0
        assert ids.null_count == 0
        assert len(set(ids.to_pylist())) == len(rows)
        assert sum(manifest.labels.values()) == len(rows)
        reading = Reading({}, names.uri if file.how == "named" else None, allow_local=False)
        if manifest.places:
            reading = replace(reading, allow_local=True)
            assert {got.status for got in fetch(rows, reading)} <= FETCHED
    return "read"


def _rows(manifest: Manifest, stored: Location) -> pa.Table:
    if manifest.data is not None:
        stored.replace(manifest.data)
        again = read_stored(stored)
        assert (again.digest, again.labels) == (manifest.digest, manifest.labels)
    return read_rows(manifest.source(stored), 0, manifest.rows)


@cache
def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_TABLE = pa.table(
    {
        "uri": ["/a.jpg", "/b.jpg", "/c.jpg"],
        "label": ["cat", None, "3"],
        "width": [1, None, 3],
        "meta": [{"year": 1}, None, {"year": 3}],
    }
)
_SECRET = "a secret that no condition may read"


def selects(where: str) -> str:
    """A condition keeps rows in their order, each at most once, or is refused; it has no files."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        secret = Path(folder, "secret.csv")
        secret.write_text(_SECRET)
        where = where.replace("FILE", str(secret))
        try:
            condition = Condition(where)
            rows, told = condition.rows(_TABLE).to_pylist(), ""
        except ValueError as error:
            told, verdict = _told(error), "refused"
        else:
            assert rows == sorted(set(rows))
            assert set(rows) <= {0, 1, 2}
            verdict = "selects"
        assert _SECRET not in told
        assert [path.name for path in Path(folder).iterdir()] == ["secret.csv"]
        assert secret.read_text() == _SECRET
    return verdict


def trusts(uri: str) -> str:
    """A remote manifest's uri leads to a known, unchained, remote url without '..', or nowhere."""
    for check in (check_scheme, named):
        try:
            check(uri)
        except (Refused, ValueError) as error:
            _told(error)
    try:
        location = Reading({}).location(uri)
    except Refused as error:
        _told(error)
        return "denied"
    except ValueError as error:
        _told(error)
        return "unsupported"
    scheme, separator, rest = uri.partition("://")
    assert separator
    assert "::" not in uri
    assert scheme in SCHEMES
    assert scheme not in LOCAL_SCHEMES
    assert not location.is_local
    path = rest.partition("?")[0] if scheme in ("http", "https") else rest
    assert ".." not in path.split("/")
    return "allowed"


def is_told_public(address: str) -> str:
    """No address of this machine or its networks is told to be public."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    public = is_public(address)
    if ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        assert not public, address
    return "public" if public else "private"


@dataclass(frozen=True)
class Target:
    """A property, the inputs that it is held against, and its share of a run's cases."""

    property: Callable[[Any], str]
    inputs: Callable[[], st.SearchStrategy[Any]]
    share: float


TARGETS = {
    "images": Target(decodes, fuzz_images.image_files, 0.5),
    "parquet": Target(lists, fuzz_manifests.parquet_files, 0.1),
    "csv": Target(lists, fuzz_manifests.csv_files, 0.05),
    "jsonl": Target(lists, fuzz_manifests.json_files, 0.05),
    "tar": Target(lists, fuzz_tars.tar_files, 0.06),
    "where": Target(selects, fuzz_texts.conditions, 0.06),
    "uris": Target(trusts, fuzz_texts.uris, 0.12),
    "addresses": Target(is_told_public, fuzz_texts.addresses, 0.06),
}
