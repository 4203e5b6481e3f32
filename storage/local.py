"""Whole files of this machine: written completely or not at all, synced before they are seen."""

import errno
import os
import posixpath
import stat
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# A writer that is killed leaves a file of this kind behind, which nobody takes for an object.
_TEMPORARY = ".partial"
# Folders that are listed at the same time: on a network's file system each takes a while.
_LISTERS = 16
_LEADS_NOWHERE = {errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}


def read(path: str, limit: int | None, start: int) -> bytes:
    """The file's bytes from `start` on, at most `limit`.

    Raises ValueError for a FIFO, which could block for ever.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError("a FIFO, socket or device, not a regular file")
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(-1 if limit is None else limit)


def names(folder: str) -> list[str]:
    """Sorted names of the files in a folder, less the temporary ones; [] if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if not _is_folder(entry)]
    except FileNotFoundError:
        return []
    return sorted(n for n in found if not (n.startswith(".") and n.endswith(_TEMPORARY)))


def walk(root: str) -> list[str]:
    """Relative paths of all that is no folder below `root`, links followed but not in circles."""
    found: list[str] = []
    level = [_Folder("", frozenset())]
    with ThreadPoolExecutor(_LISTERS, "list") as pool:
        while level:
            below: list[_Folder] = []
            for files, folders in pool.map(partial(_scan, root), level):
                found += files
                below += folders
            level = below
    return found


@dataclass(frozen=True)
class _Folder:
    """A folder below a root; `above` are device and inode of those that it was reached through."""

    path: str
    above: frozenset[tuple[int, int]]


def _scan(root: str, folder: _Folder) -> tuple[list[str], list[_Folder]]:
    """The files directly inside, and the folders; nothing where a link led back up."""
    where = os.stat(os.path.join(root, folder.path))
    here = (where.st_dev, where.st_ino)
    if here in folder.above:
        return [], []
    files, folders = [], []
    with os.scandir(os.path.join(root, folder.path)) as entries:
        for entry in entries:
            below = posixpath.join(folder.path, entry.name)
            if _is_folder(entry):
                folders.append(_Folder(below, folder.above | {here}))
            else:
                files.append(below)
    return files, folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether to look inside; a link that leads nowhere is told when its file is read."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return False
        raise


def create(path: str, data: bytes) -> bool:
    """Write a file that does not exist: True if made, False if there was one; makes parents."""
    with _written(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise OSError(
                    errno.ENOTSUP,
                    "this file system has no hard links, which creating without overwriting "
                    "needs: write to another disk or to an object store",
                ) from error
            raise
    return True


def replace(path: str, data: bytes) -> None:
    """Write a file whether or not it exists; makes parents."""
    with _written(path, data) as temporary:
        os.replace(temporary, path)


@contextmanager
def _written(path: str, data: bytes) -> Iterator[str]:
    """A synced temporary file beside `path`; what becomes of its name is synced afterwards."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        with Path(temporary).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
