"""Tar shards, as hypothesis draws them: odd members, odd headers, and as they should be."""

import io
import tarfile
from contextlib import suppress

from hypothesis import strategies as st

from benchmarks.fuzz_edits import Change, edited, edits, often
from benchmarks.fuzz_manifests import DEPTHS, HOWS, File

BLOCK = 512


def tar_files() -> st.SearchStrategy[File]:
    """Tars of odd members, whose header checksums are right however they are edited."""
    odd = st.builds(_tar, st.lists(_members(), max_size=6), _formats)
    plain = st.lists(_samples(), max_size=4, unique_by=lambda sample: sample[0][0].name)
    whole = odd | plain.map(lambda parts: _tar([each for part in parts for each in part]))
    mended = st.builds(lambda data, changes: _mended(edited(data, changes)), whole, _header_edits())
    wild = st.builds(edited, whole, edits())
    return st.builds(
        File, st.just(".tar"), st.sampled_from(HOWS), often(whole, whole, mended, wild)
    )


_formats = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
_KINDS = (tarfile.REGTYPE,) * 6 + (
    *(tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"x", b"g", b"L", b"?"),
)
_LABELS = (
    "3",
    "cat",
    "",
    "\xff",
    '{"label": 1}',
    '{"label": "\\ud800"}',
    "[1]",
    '{"class": [{}]}',
    "{",
)


def _members() -> st.SearchStrategy[tuple[tarfile.TarInfo, bytes]]:
    stems = st.sampled_from(
        ["a", "b/a", "./c", "/d", "../e", ".f", "cat/1", "x" * 120, "ä", "\udcff"]
    )
    endings = st.sampled_from([".jpg", ".png", ".cls", ".json", ".seg.png", ".JPG", "", "."])
    labels = st.sampled_from(_LABELS).map(str.encode)
    deep = DEPTHS.map(lambda depth: b"[" * depth)
    content = often(labels, labels, labels, st.binary(max_size=40), deep)
    pax = st.dictionaries(
        st.sampled_from(
            ["path", "size", "mtime", "GNU.sparse.size", "GNU.sparse.map", "hdrcharset"]
        ),
        st.sampled_from(["1", "-1", "x", "99999999999", "0,1", "BINARY", ""]),
        max_size=2,
    )
    return st.builds(_member, stems, endings, content, st.sampled_from(_KINDS), pax)


def _member(
    stem: str, ending: str, content: bytes, kind: bytes, pax: dict[str, str]
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(stem + ending)
    info.size, info.type, info.pax_headers = len(content), kind, pax
    return info, content


def _samples() -> st.SearchStrategy[list[tuple[tarfile.TarInfo, bytes]]]:
    """An image as it should be, with a label of some form beside it or none."""

    def sample(number: int, label: tuple[str, bytes] | None) -> list[tuple[tarfile.TarInfo, bytes]]:
        image = _member(f"cat/{number}", ".jpg", b"image", tarfile.REGTYPE, {})
        named = [] if label is None else [_member(f"cat/{number}", *label, tarfile.REGTYPE, {})]
        return [image, *named]

    labels = st.sampled_from([(".cls", b"3"), (".json", b'{"label": "a"}'), (".txt", b"a")])
    return st.builds(sample, st.integers(0, 999), st.none() | labels)


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for info, content in members:
            with suppress(ValueError):  # a name that the format has no room for
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def _header_edits() -> st.SearchStrategy[list[Change]]:
    """Edits of sizes, kinds, names and sparse maps in the headers of the first members."""
    fields = st.sampled_from([0, 100, 124, 124, 124, 136, 156, 156, 157, 257, 345, 386, 482, 483])
    at = st.builds(lambda block, field: block * BLOCK + field, st.integers(0, 12), fields)
    values = st.sampled_from(
        [
            b"77777777777\x00",
            b"-0000000001\x00",
            b"00000000000\x00",
            b"00000001000\x00",
            b"\x80" + bytes(11),
            b"\xff" * 12,
            b"\xff" + b"\xff" * 9 + b"\xfe\x00",
            b"\x80" + b"\xff" * 11,
            b"x",
            b"g",
            b"S",
            b"L",
            b"K",
            b"0",
            b"12 size=-1024\n",
            b"0 path=a\n",
            b"999999999 path=a\n",
            b"x.jpg\x00",
        ]
    )
    return st.lists(st.tuples(st.just("set"), at, values), min_size=1, max_size=4)


def _mended(data: bytes) -> bytes:
    """With a right checksum in every block that has one, so that tarfile reads on."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return b"".join(block if block[257:262] != b"ustar" else _checked(block) for block in blocks)


def _checked(block: bytes) -> bytes:
    if len(block) < BLOCK:
        return block
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return block[:148] + b"%06o\0 " % total + block[156:]
