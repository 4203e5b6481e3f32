"""When objects were written, by the clock of the store that holds them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from storage.locations import Location

# What the filesystems of fsspec call it: S3; files; Google; Azure, SFTP and others.
_NAMES = ("LastModified", "mtime", "updated", "last_modified", "modified")


def written(folder: Location) -> dict[str, float | None]:
    """The objects directly in a folder by their names, and when each was last written.

    Seconds since 1970 by the store's clock, which may be another than this machine's; None where
    the store does not tell. {} where nothing is. Raises StorageUnavailable.
    """

    def listed() -> list[dict[str, Any]]:
        try:
            return list(folder.filesystem.ls(folder.path, detail=True, refresh=True))
        except FileNotFoundError:
            return []

    inside = folder.path.rstrip("/") + "/"
    return {
        str(entry["name"])[len(inside) :]: _seconds(entry)
        for entry in folder.attempt(listed)
        if entry["type"] != "directory" and str(entry["name"]).startswith(inside)
    }


def _seconds(entry: Mapping[str, Any]) -> float | None:
    value = next((entry[name] for name in _NAMES if entry.get(name) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None
