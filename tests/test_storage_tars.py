"""Members of a tar are ranges of bytes: none of them becomes a file, or leads to one."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from storage import tars
from storage.images import Reading, fetch
from storage.locations import Location
from storage.manifests import ManifestError, read_manifest
from storage.row_reader import read_rows

HOSTILE = ["../../escaped.jpg", "/etc/escaped.jpg", "a/../../b.jpg", "a\x1b[2J\n.jpg", "c:\\d.jpg"]


def member(name: str, data: bytes = b"picture", kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info


def test_members_with_names_of_elsewhere_are_rows_and_no_files(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "s.tar", "w") as file:
        for name in HOSTILE:
            file.addfile(member(name), io.BytesIO(b"picture"))
    before = sorted(tmp_path.rglob("*"))
    place = Location(str(folder / "s.tar"))
    manifest = read_manifest(place)
    assert manifest.data is not None
    place.parent.child("stored").create(manifest.data)
    rows = read_rows(manifest.source(place.parent.child("stored")), 0, manifest.rows)
    # Those with .. count as hidden, as all names with a leading dot do.
    named = [name for name in HOSTILE if ".." not in name]
    assert rows["image_id"].to_pylist() == [f"s.tar/{name}" for name in named]
    assert set(rows["uri"].to_pylist()) == {place.url}
    assert [image.data for image in fetch(rows, Reading({}, allow_local=True))] == [
        b"picture"
    ] * len(named)
    place.parent.child("stored").delete()
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/escaped.jpg").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_no_images(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        file.addfile(member("good.jpg"), io.BytesIO(b"picture"))
        for number, target in enumerate([str(tmp_path / "secret.jpg"), "../secret.jpg"]):
            info = member(f"{number}.jpg", b"", kind)
            info.linkname = target
            file.addfile(info)
    index = tars.index(Location(str(tmp_path / "s.tar")), "s.tar", None)
    assert index["image_id"].to_pylist() == ["s.tar/good.jpg"]


def sparse(name: str, size: int) -> bytes:
    """The header of a file that says to be of `size` bytes, of which none is in the tar."""
    header = bytearray(member(name, b"", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size  # the real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_sparse_file_of_a_terabyte_takes_no_memory(tmp_path: Path) -> None:
    good = member("good.jpg").tobuf() + b"picture".ljust(512, b"\0")
    headers = sparse("big.jpg", 8 * 2**30 - 1) + sparse("big.cls", 8 * 2**30 - 1)
    (tmp_path / "s.tar").write_bytes(headers + good + bytes(1024))
    with tarfile.open(tmp_path / "s.tar") as file:
        assert [info.size for info in file] == [8 * 2**30 - 1, 8 * 2**30 - 1, 7]
    index = tars.index(Location(str(tmp_path / "s.tar")), "s.tar", None)
    assert index["image_id"].to_pylist() == ["s.tar/good.jpg"]


def test_a_label_of_no_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with path.open("wb") as file:
        file.write(member("good.jpg").tobuf() + b"picture".ljust(512, b"\0"))
        info = member("la\x1bbel.json")
        info.size = 16 * 2**20 + 1
        file.write(info.tobuf())
        file.truncate(file.tell() + 17 * 2**20)
    rule = r"member la\\x1bbel\.json has 16777217 bytes: a \.cls or \.json with a label has at most"
    with pytest.raises(ManifestError, match=rule):
        read_manifest(Location(str(path)))
    assert os.listdir(tmp_path) == ["s.tar"]


def header(size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header of the member a.jpg with whatever size, and the checksum that belongs to it."""
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124 : 124 + len(size)], block[156:157] = size, kind
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return bytes(block[:148]) + b"%06o\0 " % total + bytes(block[156:])


def pax_size(size: bytes) -> bytes:
    """A pax header that tells the next member's size."""
    record = b"%d size=%s\n" % (len(size) + 9, size)
    return header(b"%011o\0" % len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (header(b"\xff" * 10 + b"\xfe\0"), r"a\.jpg: its headers do not tell a size \(-512 bytes"),
        (header(b"\x80" + b"\xff" * 11), r"do not tell a size \(309485009821345068724781055 bytes"),
        (pax_size(b"100") + header(b"00000000012\0") + bytes(512), "not tell a size .100 bytes"),
        (
            header(b"00000000001\0", b"x")
            + b"3".ljust(512, b"\0")  # tells nothing
            + pax_size(b"1")
            + header(b"00000000003\0")
            + b"cat".ljust(512, b"\0"),
            "not tell a size .1 bytes",
        ),
        (header(b"77777777777\0", b"L"), "a header claims to be followed by 8589934592 bytes"),
        (header(b"\x80" + b"\xff" * 11, b"x"), "a header claims to be followed by 3094"),
        (pax_size(b"100") * 2000 + header(b"00000000000\0"), "maximum recursion depth exceeded"),
    ],
)
def test_headers_that_lead_nowhere_are_refused(
    tmp_path: Path, headers: bytes, message: str
) -> None:
    (tmp_path / "s.tar").write_bytes(headers + bytes(1024))
    with pytest.raises(ManifestError, match=message):
        read_manifest(Location(str(tmp_path / "s.tar")))


def test_a_size_that_is_told_twice_alike_is_read(tmp_path: Path) -> None:
    data = pax_size(b"10") + header(b"00000000012\0") + b"0123456789".ljust(512, b"\0")
    place = Location(str(tmp_path / "s.tar"))
    place.create(data + bytes(1024))
    rows = tars.index(place, "s.tar", None)
    assert [got.data for got in fetch(rows, Reading({}, allow_local=True))] == [b"0123456789"]


def test_a_label_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        for name, content in (("a.jpg", b"picture"), ("a.json", b"[" * 100_000)):
            file.addfile(member(name, content), io.BytesIO(content))
    with pytest.raises(ManifestError, match=r"member a\.json is no JSON: maximum recursion"):
        read_manifest(Location(str(tmp_path / "s.tar")))
