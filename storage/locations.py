"""A place in a store: read, list, create and replace whole objects there, whatever the store.

    Location("~/out")    Location("s3://bucket/out", {"anon": True})    Location("gs://bucket/out")

Objects are written whole or not at all. `create` never overwrites, which is what makes the presence
of a part the commit of its shard.
"""

import glob
import os
import posixpath
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.spec import AbstractFileSystem
from fsspec.utils import tokenize

from storage import local
from storage.errors import (
    OF_ONE_OBJECT,
    CredentialsRefused,
    StorageUnavailable,
    WriteRefused,
    foreign_options,
    response_code,
    translated,
)
from storage.shown import shown

__all__ = [
    "CredentialsRefused",
    "Location",
    "StorageUnavailable",
    "WriteRefused",
    "creates_conditionally",
]

_T = TypeVar("_T")

# Seconds to wait before each further attempt at a remote store, on average: whoever was refused for
# being too many at once is not to come back at once.
_PAUSES = (0.2, 1.0)
# Folders that are listed at the same time.
_LISTERS = 16
# What botocore does on top within one attempt; s3fs multiplies by its own count, so that is set
# to 1 below: left alone, one read of a dead endpoint makes 125 connections.
_S3_CONFIG = {
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "connect_timeout": 10,
    "read_timeout": 30,
    "max_pool_connections": 64,
}

_filesystems: dict[str, AbstractFileSystem] = {}
_filesystems_lock = threading.Lock()


@dataclass(frozen=True, repr=False)
class Location:
    """One object or folder of a store.

    `url` is any fsspec url or a local path ('~' and relative paths are made absolute); `options`
    are fsspec's for that store, may hold secrets, and are shown nowhere. Raises ValueError for an
    empty url. All methods raise what `storage.errors` lists.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("a location is a url or a path, got an empty text: name one")
        protocol, separator, rest = self.url.partition("://")
        if not separator or protocol in ("file", "local"):
            url = os.path.abspath(os.path.expanduser(rest if separator else self.url))
        else:
            url = f"{protocol}://{rest.rstrip('/')}"
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "options", dict(self.options))

    def __repr__(self) -> str:
        return f"Location({self.shown!r})"

    def __str__(self) -> str:
        return self.shown

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.url

    @property
    def shown(self) -> str:
        """The url as messages may show it: no query (signed urls), no user and password."""
        return shown(self.url)

    @property
    def name(self) -> str:
        """The last segment, as in part-00000042.parquet."""
        return posixpath.basename(self.url if self.is_local else self.url.partition("?")[0])

    @property
    def parent(self) -> "Location":
        """The folder that this lies in."""
        url = self.url if self.is_local else self.url.partition("?")[0]
        return Location(posixpath.dirname(url), self.options)

    def child(self, *names: str) -> "Location":
        """A location below this one; names may hold several segments."""
        return Location("/".join([self.url.rstrip("/"), *names]), self.options)

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The fsspec filesystem, one for each store and process.

        Raises ValueError for an unknown protocol and ImportError where its package is missing.
        """
        protocol = "file" if self.is_local else self.url.partition("://")[0]
        return _filesystem(protocol, self.options)

    @property
    def path(self) -> str:
        """The location as its filesystem names it."""
        return self.url if self.is_local else str(self.filesystem._strip_protocol(self.url))

    def attempt(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, which touches this store: errors translated, retried if remote.

        `work` must bear being done again. Infrastructure is tried three times, then
        StorageUnavailable is raised; refused credentials are not tried again.
        """
        for pause in () if self.is_local else _PAUSES:
            try:
                with translated(self.url, self.options):
                    return work()
            except CredentialsRefused:
                raise
            except StorageUnavailable:
                time.sleep(pause * random.uniform(0.5, 1.5))
        with translated(self.url, self.options):
            return work()

    def read(self, limit: int | None = None, *, start: int = 0) -> bytes:
        """The object's bytes from `start` on, at most `limit` of them.

        Raises FileNotFoundError, IsADirectoryError, PermissionError, ValueError for what is no
        regular file (a FIFO would block for ever), StorageUnavailable.
        """
        if self.is_local:
            return self.attempt(lambda: local.read(self.url, limit, start))
        return self.attempt(lambda: self._remote_read(limit, start))

    def open(self, read_ahead: int = 0) -> BinaryIO:
        """A seekable stream that fetches the ranges that are read, and `read_ahead` bytes beyond.

        Use within `attempt`.
        """
        if self.is_local:
            return Path(self.url).open("rb")
        how = {"cache_type": "readahead", "block_size": read_ahead} if read_ahead else {}
        return cast(
            BinaryIO, self.filesystem.open(self.path, "rb", **({"cache_type": "none"} | how))
        )

    def names(self) -> list[str]:
        """Sorted names of the objects directly inside, never from a cache; [] where nothing is.

        Neither folders nor the temporary files of a `create` that is under way are named.
        """
        if self.is_local:
            return self.attempt(lambda: local.names(self.url))
        return self.attempt(self._remote_names)

    def walk(self) -> list[str]:
        """Paths of all objects below, relative to this folder, in no particular order.

        Follows symbolic links, except back into a folder that it came through. Raises
        FileNotFoundError where nothing is, NotADirectoryError where this is an object.
        """
        if self.is_local:
            return self.attempt(lambda: local.walk(self.url))
        return self.attempt(self._remote_walk)

    def glob(self) -> list["Location"]:
        """The objects that this url names with *, in no particular order; [] where none is."""
        if self.is_local:
            names = glob.glob(self.url, recursive=True)
            return [Location(name, self.options) for name in names if os.path.isfile(name)]

        def find() -> list[str]:
            self.filesystem.invalidate_cache()
            return [self.filesystem.unstrip_protocol(n) for n in self.filesystem.glob(self.path)]

        return [Location(url, self.options) for url in self.attempt(find)]

    def create(self, data: bytes) -> bool:
        """Write an object that does not exist: True if made, False if somebody was first.

        Whole or nothing, never overwriting: an fsynced temporary file that is linked, or one PUT
        with If-None-Match. After a lost response a retry finds our own write and returns False,
        which deterministic names make harmless. Other stores check and then write: see
        `creates_conditionally`. Raises ValueError for empty data, which s3fs creates
        unconditionally, WriteRefused and StorageUnavailable.
        """
        if not data:
            raise ValueError(f"{self.shown}: an object cannot be created empty: write some bytes")
        if self.is_local:
            return self._writing(lambda: local.create(self.url, data))
        return self._writing(lambda: self._create_remote(data))

    def replace(self, data: bytes) -> None:
        """Write an object whether or not it exists; whole or nothing (local, S3)."""
        if self.is_local:
            self._writing(lambda: local.replace(self.url, data))
        else:
            self._writing(lambda: self._put(data, "overwrite"))

    def delete(self) -> None:
        """Remove the object; nothing happens where there is none."""

        def remove() -> None:
            if self.is_local:
                Path(self.url).unlink(missing_ok=True)
            elif self.filesystem.exists(self.path):
                self.filesystem.rm_file(self.path)

        self.attempt(remove)

    def _writing(self, work: Callable[[], _T]) -> _T:
        try:
            return self.attempt(work)
        except OF_ONE_OBJECT as error:
            raise WriteRefused(f"cannot write {error}") from error

    def _remote_read(self, limit: int | None, start: int) -> bytes:
        end = None if limit is None else start + limit
        try:
            # A range keeps s3fs from asking for the size first: one request instead of two, and
            # the refusal of a GET says why, where that of a HEAD has no body.
            return bytes(self.filesystem.cat_file(self.path, start=start, end=end))
        except Exception as error:  # every client has a class of its own for it
            code, status = response_code(error)
            if code == "InvalidRange" or status == 416:
                return b""  # no range of an empty object can be satisfied
            raise

    def _remote_names(self) -> list[str]:
        try:
            entries = self.filesystem.ls(self.path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        inside = self.path.rstrip("/") + "/"
        names = [e["name"] for e in entries if e["type"] != "directory"]
        return sorted(n[len(inside) :] for n in names if n.startswith(inside) and n != inside)

    def _remote_walk(self) -> list[str]:
        path = self.path.rstrip("/")
        entries = self.filesystem.ls(path, detail=True, refresh=True)
        if [entry["name"] for entry in entries if entry["type"] != "directory"] == [path]:
            raise NotADirectoryError("an object, not a folder")
        names = [entry["name"] for entry in entries if entry["type"] != "directory"]
        folders = [entry["name"] for entry in entries if entry["type"] == "directory"]
        with ThreadPoolExecutor(_LISTERS, "list") as pool:
            for folder, below in zip(folders, pool.map(self.filesystem.find, folders), strict=True):
                names += [
                    name for name in below if name != folder
                ]  # an emptied folder of some stores
        found = [n[len(path) + 1 :] for n in names if n.startswith(path + "/")]
        if not found:
            raise FileNotFoundError("nothing there")
        return [name for name in found if name and not name.endswith("/")]

    def _create_remote(self, data: bytes) -> bool:
        for attempt in range(5):
            try:
                self._put(data, "create")
            except OSError as error:
                code, status = response_code(error)
                if isinstance(error, FileExistsError) or status == 412:
                    return False
                # Two conditional writes met and the store decided neither: ask again.
                if code != "ConditionalRequestConflict" and status != 409:
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return True
        raise StorageUnavailable(f"{self.shown}: five conditional writes in a row met others")

    def _put(self, data: bytes, mode: str) -> None:
        # s3fs cuts what is larger than two chunks into a multipart upload: keep it one PUT.
        chunk = {"chunksize": max(len(data), 2**20)} if _is_s3(self.url) else {}
        self.filesystem.pipe_file(self.path, data, mode=mode, **chunk)


def creates_conditionally(location: Location) -> bool:
    """Whether the store refuses to create an object twice, tried on one that already exists.

    The same bytes are written again, so a store that does not refuse takes no harm. False also
    for filesystems that only look first and then write.
    """
    if not location.is_local:
        kind = type(location.filesystem)
        if kind.pipe_file is AbstractFileSystem.pipe_file and not _is_s3(location.url):
            return False
    return not location.create(location.read())


def _filesystem(protocol: str, options: Mapping[str, Any]) -> AbstractFileSystem:
    """fsspec caches filesystems by thread too: a pool would log in once for every thread."""
    key = tokenize(os.getpid(), protocol, dict(options))
    with _filesystems_lock:
        if key not in _filesystems:
            _filesystems[key] = _new_filesystem(protocol, options)
        return _filesystems[key]


def _new_filesystem(protocol: str, options: Mapping[str, Any]) -> AbstractFileSystem:
    kind = fsspec.get_filesystem_class(protocol)
    if not _is_s3(f"{protocol}://"):
        try:
            return kind(**{"skip_instance_cache": True, **options})
        except TypeError:
            raise foreign_options(protocol) from None
    config = {**_S3_CONFIG, **options.get("config_kwargs", {})}
    options = {"use_listings_cache": False, **options, "config_kwargs": config}
    filesystem = kind(**options, skip_instance_cache=True)
    filesystem.retries = 1
    return filesystem


def _is_s3(url: str) -> bool:
    return url.partition("://")[0] in ("s3", "s3a")
