"""WebDataset tar shards: where their images lie, and whether a member still lies there.

A sample is the members whose names are the same up to the first dot of the last segment. Its label
is what `.cls` holds, else the label of its `.json`; in a tar without either, the first folder of
its name.
"""

import json
import posixpath
import tarfile
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa

from storage.locations import Location
from storage.shown import printable

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif"),
    *(".bmp", ".tif", ".tiff", ".avif", ".ppm"),
)
BLOCK = 512  # bytes of a member's header, which lies before its data
_LABELS = ("label", "class", "category")
# Fetched ahead while going from header to header; images are smaller, so most are in one request.
_READ_AHEAD = 4 * 2**20
_LARGEST_LABEL = 16 * 2**20


@dataclass(frozen=True)
class _Member:
    name: str
    key: str
    field: str
    offset: int
    size: int


def index(location: Location, name: str, label_key: str | None) -> pa.Table:
    """The images of a tar in its order: image_id, uri, label, and offset and size in bytes.

    An image_id is `name`/member. Nothing is ever extracted, and links and sparse files are no
    images. Raises ValueError for what is no plain tar.
    """
    images: list[_Member] = []
    labels: dict[str, str] = {}
    with location.open(read_ahead=_READ_AHEAD) as stream:
        file = _Bounded(stream)
        try:
            with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as tar:
                for info in tar:
                    _check_size(file, info)
                    # A link names what is not here; a sparse file is not as long as it says.
                    if not info.isreg() or info.issparse() or _is_hidden(info.name):
                        continue
                    member = _member(info)
                    if member.name.lower().endswith(IMAGE_EXTENSIONS):
                        images.append(member)
                    elif member.field in ("cls", "json"):
                        _read_label(member, _content(tar, info), label_key, labels)
        except (tarfile.TarError, RecursionError) as error:  # tarfile calls itself for each header
            raise ValueError(
                f"{location}: {error}; a tar shard must be a plain, uncompressed tar"
            ) from error
    images = _of_samples(images)
    return pa.table(
        {
            "image_id": pa.array([f"{name}/{image.name}" for image in images], pa.string()),
            "uri": pa.array([location.url] * len(images), pa.string()),
            "label": pa.array([_label(image, labels) for image in images], pa.string()),
            "offset": pa.array([image.offset for image in images], pa.int64()),
            "size": pa.array([image.size for image in images], pa.int64()),
        }
    )


def holds_member(header: bytes, size: int) -> bool:
    """Whether the block before a member's data is the header of a file of that size."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size
    except tarfile.HeaderError:
        return False


class _Bounded:
    """A tar's stream, of which only so much is read at once as a label or a long name may need:
    Python's tarfile would reserve whatever a header claims.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_LABEL + BLOCK:
            raise tarfile.ReadError(f"a header claims to be followed by {size} bytes of its own")
        return self._read(size)


def _check_size(file: _Bounded, info: tarfile.TarInfo) -> None:
    """Refuse a size that is none, or that another header than the one before the data tells, by
    which a shard finds out whether the tar is still the same.
    """
    is_told = True
    # Of two headers before the member's own, `pax_headers` are the first one's alone.
    if info.offset_data - info.offset > BLOCK:
        file.seek(info.offset_data - BLOCK)
        is_told = holds_member(file.read(BLOCK), info.size)
    if not 0 <= info.size < 2**63 or not is_told:
        raise ValueError(
            f"member {printable(info.name)}: its headers do not tell a size ({info.size} bytes)"
        )


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """What a label's member holds. Raises ValueError for more than a label can need."""
    if info.size > _LARGEST_LABEL:
        raise ValueError(
            f"member {printable(info.name)} has {info.size} bytes: a .cls or .json with a label "
            f"has at most {_LARGEST_LABEL}"
        )
    content = tar.extractfile(info)
    return content.read() if content else b""


def _member(info: tarfile.TarInfo) -> _Member:
    name = info.name.removeprefix("./")
    folder, last = posixpath.split(name)
    key, _, field = last.partition(".")
    return _Member(name, posixpath.join(folder, key), field.lower(), info.offset_data, info.size)


def _is_hidden(name: str) -> bool:
    parts = name.removeprefix("./").split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _of_samples(images: list[_Member]) -> list[_Member]:
    """Less a sample's further images, such as the mask 0001.seg.png beside 0001.jpg."""
    plain = {image.key for image in images if "." not in image.field}
    return [image for image in images if "." not in image.field or image.key not in plain]


def _read_label(member: _Member, content: bytes, key: str | None, labels: dict[str, str]) -> None:
    if member.field == "cls":
        labels[member.key] = content.decode().strip()
        return
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"member {printable(member.name)} is no JSON: {error}") from error
    names = _LABELS if key is None else (key,)
    found = [fields[name] for name in names if isinstance(fields, dict) and name in fields]
    if found and found[0] is not None:
        labels.setdefault(member.key, str(found[0]))


def _label(image: _Member, labels: dict[str, str]) -> str | None:
    if labels:
        return labels.get(image.key)
    folder, slash, _ = image.name.partition("/")
    return folder if slash else None
