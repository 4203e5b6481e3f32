"""Options of stores, from files that a command line names; needs neither torch nor Ray."""

import json
import uuid
from typing import Any

from storage.locations import Location, StorageUnavailable
from storage.trust import named


def read_options(path: str | None) -> dict[str, Any]:
    """fsspec options from a JSON file; its content may be secret and appears in no message."""
    if path is None:
        return {}
    location = named(path)
    data = location.read()
    try:
        content = json.loads(data)
    except ValueError:
        raise ValueError(f"{location} is not JSON; want an object of fsspec options") from None
    if not isinstance(content, dict):
        raise ValueError(f"{location} must hold a JSON object of fsspec options")
    return content


def check_writable(folder: Location) -> None:
    """Write and delete an object there; raises OSError or StorageUnavailable that say why not."""
    probe = folder.child(f".writable-{uuid.uuid4().hex}")
    try:
        probe.create(b"probe")
        probe.delete()
    except (OSError, StorageUnavailable) as error:
        raise type(error)(f"cannot write to {folder}: {error}") from error
