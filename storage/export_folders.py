"""A folder made for another tool: which export it is, its files, and whether all are there.

export-begun.json   created first: which export it is
export.json         created last: the same, and every file with its size and digest

The same export makes the same files, so that a second attempt keeps what an interrupted one left.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from storage.exports import ELSEWHERE, ExportError, entries, read_json, refuse_other, some
from storage.locations import Location

BEGUN, DONE = "export-begun.json", "export.json"


@dataclass(frozen=True)
class CreatedFile:
    """One file of an export: its name below the folder, its size in bytes and its sha256 as hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportFolder:
    """The export at `root` that `identity` describes, and no other one.

    All methods raise ExportError where something else is there, and WriteRefused and
    StorageUnavailable as Location does.
    """

    root: Location
    identity: Mapping[str, str]

    def begin(self) -> dict[str, Any] | None:
        """export.json if this very export is complete, else None, and the place is claimed."""
        inside = entries(self.root)
        if DONE in inside:
            return self._compared(DONE)
        if BEGUN not in inside and inside:
            raise ExportError(f"{self.root} is not empty: it holds {some(inside)}; {ELSEWHERE}")
        if not self.root.child(BEGUN).create(_encode(self.identity)):
            self._compared(BEGUN)
        return None

    def create(self, name: str, data: bytes) -> CreatedFile:
        """Create a file, or find it there with the same bytes, left by an earlier attempt."""
        place = self.root.child(name)
        if not place.create(data) and place.read() != data:
            raise ExportError(f"{place} holds other bytes than this export; {ELSEWHERE}")
        return CreatedFile(name, len(data), hashlib.sha256(data).hexdigest())

    def finish(self, files: Sequence[CreatedFile], told: Mapping[str, int]) -> dict[str, Any]:
        """Create export.json, with counts that are `told`, and return what it says."""
        said = {**self.identity, **told, "files": [asdict(file) for file in files]}
        if not self.root.child(DONE).create(_encode(said)):
            return self._compared(DONE)
        return said

    def _compared(self, name: str) -> dict[str, Any]:
        found = read_json(self.root.child(name))
        refuse_other(self.root, found, self.identity)
        return found


def _encode(value: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(value, indent=2)}\n".encode()
