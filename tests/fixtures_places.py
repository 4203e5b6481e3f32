"""A real S3 server, places to write to, and pictures."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.weed import BUCKET, Weed
from storage.locations import Location


@dataclass(frozen=True)
class S3Prefix:
    """A fresh prefix of the server's bucket."""

    server: Weed
    prefix: str

    @property
    def options(self) -> dict[str, Any]:
        return self.server.options()

    @property
    def options_without_rights(self) -> dict[str, Any]:
        return self.server.options("stranger", "strangers-secret")

    def url(self, name: str = "") -> str:
        return f"s3://{BUCKET}/{self.prefix}/{name}".rstrip("/")

    def location(self, name: str = "") -> Location:
        return Location(self.url(name), self.options)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """SeaweedFS, which honours If-None-Match, on free ports for the whole session."""
    server = Weed(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3(s3_server: Weed) -> S3Prefix:
    """A fresh prefix on the S3 server: `.url(name)`, `.options`, `.location(name)`."""
    return S3Prefix(s3_server, uuid.uuid4().hex)


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind of store, so that a test runs over both."""
    if request.param == "local":
        return Location(str(tmp_path / "store"))
    prefix: S3Prefix = request.getfixturevalue("s3")
    return prefix.location()


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of labelled photographs, one sub-folder a class."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "photos"
    folder = Path(os.environ.get("SALIENCY_PHOTOS", beside))
    if not folder.is_dir():
        pytest.skip("no photographs: set SALIENCY_PHOTOS to a folder with one sub-folder a class")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small pictures of noise, JPEG and PNG, in three class folders."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(60):
        name = ("ant", "bee", "cat")[number % 3]
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((80 + number, 60 + number))
        (folder / name).mkdir(exist_ok=True)
        picture.save(folder / name / f"{number:03d}.{'png' if number % 5 == 0 else 'jpg'}")
    return folder
