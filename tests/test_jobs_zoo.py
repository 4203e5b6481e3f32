"""The input zoo: whatever lies in a folder, each image has its row, and its neighbours theirs."""

import io
import json
import os
import shutil
import struct
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.worker import ExplainWorker, Job
from storage.locations import Location
from storage.manifests import read_folder, read_manifest

ARGUMENTS = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
NOBODY = 65534


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def uniform(value: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full((48, 64), value, dtype))


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    sink = io.BytesIO()
    (image or picture()).save(sink, kind, **options)
    return sink.getvalue()


def chunk(kind: bytes, content: bytes, spoil: int = 0) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content) ^ spoil)
    return struct.pack(">I", len(content)) + kind + content + check


def png(
    width: int = 64,
    height: int = 48,
    *,
    bits: int = 8,
    colour: int = 2,
    spoil: int = 0,
    extra: bytes = b"",
) -> bytes:
    """A PNG of zeros, with its pixels' check sum and further chunks as asked."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * samples * bits + 7) // 8)
    pixels = zlib.compress(row * min(height, 256))
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels, spoil)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def frames(kind: str, **options: Any) -> bytes:
    others = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    return saved(kind, save_all=True, append_images=others, **options)


def sized(data: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header promises other sides."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


JPEG, PNG = saved("JPEG", quality=90), saved("PNG")
EXIF = Image.Exif()
EXIF[0x0112] = 6  # lies on its side
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ZEROS = zlib.compress(bytes(80 * 2**20), 9)
TEXT = PngInfo()
TEXT.add_itxt("comment", "a note")
TEN_NOTES = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(900_000), 9)) * 100

# name of the file -> its content, its status, and what its error says
ZOO: dict[str, tuple[bytes, str, str | None]] = {
    "good.jpg": (JPEG, "ok", None),
    # no image, or one that ends early
    "zero bytes.jpg": (b"", "truncated", "the file is empty (0 bytes)"),
    "one byte.jpg": (b"\xff", "undecodable", "no image format that Pillow reads"),
    "html.jpg": (b"<!DOCTYPE html><html>404</html>", "undecodable", "no image format that"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "undecodable", "no image format"),
    "pdf.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "undecodable", "no image format"),
    "zip.png": (b"PK\x03\x04" + bytes(60), "undecodable", "no image format"),
    "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "undecodable",
                "EPS is a program, and none is run"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated", "image file is truncated"),
    "truncated.png": (PNG[: len(PNG) // 2], "truncated", "image file is truncated"),
    "truncated.webp": (saved("WEBP")[:-200], "undecodable", "could not create decoder"),
    "truncated.gif": (saved("GIF")[:900], "truncated", "image file is truncated"),
    "truncated.tiff": (saved("TIFF", compression="tiff_lzw")[:2000], "undecodable", "no image"),
    "truncated.avif": (saved("AVIF")[:-200], "truncated", "Truncated data"),
    "header only.jpg": (JPEG[: JPEG.index(b"\xff\xda")], "undecodable", "cannot load this image"),
    "bad crc.png": (png().replace(b"R\0\0\0\x40", b"R\0\0\0\x41"), "undecodable", "no image"),
    "bad crc of the pixels.png": (png(spoil=1), "ok", None),  # Pillow reads on
    "no pixels.png": (png().replace(b"IDAT", b"IDAX"), "undecodable", "no image format"),
    "header spoilt.png": (png()[:16] + b"\xff" * 8 + png()[24:], "undecodable", "no image format"),
    # names that say something else
    "a png.jpg": (PNG, "ok", None),
    "a jpeg.png": (JPEG, "ok", None),
    "a gif.webp": (saved("GIF"), "ok", None),
    # sizes
    "1x1.png": (saved("PNG", picture(size=(1, 1))), "ok", None),
    "1x1.gif": (saved("GIF", picture(size=(1, 1))), "ok", None),
    "1x10000.png": (saved("PNG", picture(size=(1, 10_000))), "ok", None),
    "10000x1.jpg": (saved("JPEG", picture(size=(10_000, 1))), "ok", None),
    "bomb.png": (png(30_000, 30_000), "too_large", "exceeds limit of 178956970 pixels"),
    "bomb.jpg": (sized(JPEG, 65_500, 65_500), "too_large", "exceeds limit of 178956970 pixels"),
    "promises more.jpg": (sized(JPEG, 640, 480), "ok", None),
    "promises less.jpg": (sized(JPEG, 16, 16), "ok", None),
    "bomb.gif": (b"GIF89a\xff\xff\xff\xff" + saved("GIF")[10:], "too_large", "exceeds limit"),
    "zero wide.png": (png(0, 48), "undecodable", "no image format"),
    # compressed notes that would fill the memory
    "note bomb.png": (png(extra=chunk(b"zTXt", b"note\0\0" + ZEROS)), "undecodable",
                      "Decompressed data too large"),
    "many notes.png": (png(extra=TEN_NOTES), "undecodable", "Too much memory used in text chunks"),
    "profile bomb.png": (png(extra=chunk(b"iCCP", b"icc\0\0" + ZEROS)), "undecodable",
                         "Decompressed data too large"),
    "note.png": (saved("PNG", pnginfo=TEXT), "ok", None),
    # modes
    "cmyk.jpg": (saved("JPEG", picture("CMYK")), "ok", None),
    "grey.jpg": (saved("JPEG", picture("L")), "ok", None),
    "16 bit grey.png": (saved("PNG", uniform(999, np.uint16)), "ok", None),
    "16 bit colour.png": (png(bits=16), "ok", None),
    "palette.png": (saved("PNG", picture("P"), transparency=bytes(range(256))), "ok", None),
    "rgba.png": (saved("PNG", picture("RGBA")), "ok", None),
    "la.png": (saved("PNG", picture("LA")), "ok", None),
    "1 bit.png": (saved("PNG", picture("1")), "ok", None),
    "float.tiff": (saved("TIFF", picture("F")), "ok", None),
    "cmyk.tiff": (saved("TIFF", picture("CMYK")), "ok", None),
    "not a number.tiff": (saved("TIFF", uniform(np.nan, np.float32)), "ok", None),
    # frames and pages
    "animated.gif": (frames("GIF"), "ok", None),
    "animated.webp": (frames("WEBP"), "ok", None),
    "animated.png": (frames("PNG"), "ok", None),
    "animated.avif": (frames("AVIF"), "ok", None),
    "pages.tiff": (frames("TIFF"), "ok", None),
    "pages.jpg": (frames("MPO"), "ok", None),
    # other formats under a name that is listed
    "still.avif": (saved("AVIF"), "ok", None),
    "lossless.webp": (saved("WEBP", lossless=True), "ok", None),
    "windows.bmp": (saved("BMP"), "ok", None),
    "icon.png": (saved("ICO"), "ok", None),
    "jpeg 2000.jpg": (saved("JPEG2000"), "ok", None),
    "plain.ppm": (b"P3\n2 2\n255\n" + b"9 9 9 " * 4, "ok", None),
    # what a camera or an editor adds
    "progressive.jpg": (saved("JPEG", progressive=True), "ok", None),
    "on its side.jpg": (saved("JPEG", exif=EXIF), "ok", None),
    "corrupt exif.jpg": (saved("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffjunk"), "ok", None),
    "profile.jpg": (saved("JPEG", icc_profile=PROFILE), "ok", None),
    "broken profile.jpg": (saved("JPEG", icc_profile=PROFILE[:99]), "ok", None),
    "profile.png": (saved("PNG", icc_profile=PROFILE), "ok", None),
    "broken profile.png": (png(extra=chunk(b"iCCP", b"icc\0\0nonsense")), "ok", None),
    "trailing garbage.jpg": (JPEG + b"garbage" * 99, "ok", None),
    "trailing garbage.png": (PNG + b"garbage" * 99, "ok", None),
    "says arithmetic.jpg": (JPEG.replace(b"\xff\xc0", b"\xff\xc9"), "ok", None),
    # names
    " spaces .jpg": (JPEG, "ok", None),
    "new\nline.jpg": (JPEG, "ok", None),
    "100%25.jpg": (JPEG, "ok", None),
    "what?#x.jpg": (JPEG, "ok", None),
    "star*[a].jpg": (JPEG, "ok", None),
    "back\\slash.jpg": (JPEG, "ok", None),
    "colon: s3.jpg": (JPEG, "ok", None),
    "\x1b[31mred.jpg": (JPEG, "ok", None),
    "日本 😀.jpg": (JPEG, "ok", None),
    unicodedata.normalize("NFC", "é.jpg"): (JPEG, "ok", None),
    unicodedata.normalize("NFD", "é.jpg"): (JPEG, "ok", None),
    f"{'x' * 251}.jpg": (JPEG, "ok", None),
}  # fmt: skip
# What is no file with content, made by `zoo`.
OTHERS: dict[str, tuple[str, str | None]] = {
    "link.jpg": ("ok", None),
    "dangling.jpg": ("missing", "No such file or directory"),
    "loop.jpg": ("unsupported", "Too many levels of symbolic links"),
    "pipe.jpg": ("unsupported", "a FIFO, socket or device, not a regular file"),
    "deleted.jpg": ("missing", "No such file or directory"),
    "folder.jpg/inside.jpg": ("ok", None),
    "denied.jpg": ("denied", "Permission denied"),
}
WANTED = {name: (status, error) for name, (_, status, error) in ZOO.items()} | OTHERS


@pytest.fixture(scope="module")
def zoo() -> Iterator[Path]:
    """The folder, where everybody may read: root, which is refused nothing, must become another."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name, (data, _, _) in ZOO.items():
        (folder / name).write_bytes(data)
    (folder / "link.jpg").symlink_to(folder / "good.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "deleted.jpg").write_bytes(JPEG)
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.jpg").write_bytes(JPEG)
    (folder / "denied.jpg").write_bytes(JPEG)
    (folder / "denied.jpg").chmod(0)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rows(
    zoo: Path, job_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The row of each image, all explained as one shard."""
    manifest = read_folder(Location(str(zoo)))
    (zoo / "deleted.jpg").unlink()
    made = explained(job_of(manifest, tmp_path_factory.mktemp("run"), ARGUMENTS))
    return {row["image_id"]: row for row in made}


def explained(job: Job) -> list[dict[str, Any]]:
    """The rows of all images of a job, as one shard in batches of one."""
    (listed,) = job.rows.tables()
    batches = [_loaded(job, listed.slice(number, 1)) for number in range(len(listed))]
    ExplainWorker(job).explain_shard(Shard(0, 0, len(listed)), listed, batches)
    return job.run.read_part(0).to_pylist()


def _loaded(job: Job, rows: Any) -> Batch:
    is_denied = rows["image_id"][0].as_py() == "denied.jpg"
    becomes_nobody = is_denied and os.geteuid() == 0
    if becomes_nobody:
        os.seteuid(NOBODY)
    try:
        return load_batch(rows, job.reading, job.model.preprocessing)
    finally:
        if becomes_nobody:
            os.seteuid(0)


def test_there_are_enough_kinds_and_each_has_one_row(rows):
    assert len(WANTED) >= 40
    assert rows.keys() == WANTED.keys()
    assert sorted(row["row"] for row in rows.values()) == list(range(len(WANTED)))


@pytest.mark.parametrize("name", WANTED)
def test_each_kind_has_its_status_and_says_why(rows, name):
    status, error = WANTED[name]
    row = rows[name]
    assert row["status"] == status, row["error"]
    if status == "ok":
        assert row["error"] is None
        assert len(row["saliency"]) == 4
        assert np.isfinite([row["score_min"], row["score_max"], row["probability"]]).all()
    else:
        assert error in row["error"]
        assert "\n" not in row["error"]
        assert row["target"] is row["saliency"] is row["predicted"] is None


def test_rows_of_a_list_without_a_uri_or_with_strange_labels(tmp_path, job_of):
    (tmp_path / "a.png").write_bytes(PNG)
    lines = [
        "a.png,one,4",
        "a.png,two,5",
        "a.png,three,-1",
        ",four,0",
        "a.png,five,",
        "a.png,six,3.0",
    ]
    (tmp_path / "list.csv").write_text("\n".join(["uri,id,label", *lines]))
    manifest = read_manifest(Location(str(tmp_path / "list.csv")))
    made = explained(job_of(manifest, tmp_path / "run", ARGUMENTS))
    assert [(row["image_id"], row["label"], row["label_name"], row["status"]) for row in made] == [
        ("one", 4, "4", "ok"),
        ("two", None, "5", "ok"),
        ("three", None, "-1", "ok"),
        ("four", 0, "0", "missing"),
        ("five", None, None, "ok"),
        ("six", 3, "3", "ok"),
    ]
    assert made[3]["error"] == "the manifest has no uri for this row"


@pytest.mark.parametrize(("labels", "label"), [([4, 0], 4), (["4", "0"], 4), (["four", "0"], None)])
def test_a_label_as_a_number_and_as_text(tmp_path, job_of, labels, label):
    (tmp_path / "a.png").write_bytes(PNG)
    lines = [
        json.dumps({"uri": "a.png", "id": str(n), "label": each}) for n, each in enumerate(labels)
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    manifest = read_manifest(Location(str(tmp_path / "list.jsonl")))
    made = explained(job_of(manifest, tmp_path / "run", ARGUMENTS))
    assert [(row["label"], row["label_name"]) for row in made] == [
        (label, str(labels[0])),
        (0, "0"),
    ]
