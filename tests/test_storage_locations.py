"""Whole objects, created once, on a local disk and on a real S3 server alike."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from storage.locations import (
    CredentialsRefused,
    Location,
    StorageUnavailable,
    WriteRefused,
    creates_conditionally,
)

# In another process: wait for the start, create the object with one's own text, say who won.
RACER = """
import json, sys, time
from storage.locations import Location
url, options, text, start = json.loads(sys.argv[1])
location = Location(url, options)
location.names()  # connect before the start
time.sleep(max(0, start - time.time()))
sys.exit(0 if location.create(text.encode() * 1000) else 3)
"""
DIES_BEFORE_LINK = """
import os, signal, sys
from storage.locations import Location
os.link = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
Location(sys.argv[1]).create(b"complete bytes")
"""


def test_an_object_is_created_once_and_replaced_at_will(location: Location) -> None:
    place = location.child("deep", "part.parquet")
    assert place.create(b"first") is True
    assert place.create(b"second") is False
    assert place.read() == b"first"
    place.replace(b"third")
    assert place.read() == b"third"
    assert place.read(limit=2) == b"th"
    location.child("new").replace(b"made by replace")
    assert location.child("new").read() == b"made by replace"


def test_names_are_fresh_sorted_and_only_of_objects_inside(location: Location) -> None:
    assert location.names() == []
    for name in ("b", "a", "deep/c"):
        location.child(name).create(b"x")
        assert name in (*location.names(), "deep/c")
    assert location.names() == ["a", "b"]
    assert sorted(location.walk()) == ["a", "b", "deep/c"]
    location.child("a").delete()
    location.child("a").delete()
    assert location.names() == ["b"]


def test_awkward_names_are_kept(location: Location) -> None:
    name = "a b?c#d%20é::ü.jpg"
    location.child(name).create(b"x")
    assert location.names() == [name]
    assert location.child(name).read() == b"x"


def test_missing_objects_and_folders_say_so(location: Location) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json: "):
        location.child("absent.json").read()
    with pytest.raises(FileNotFoundError):
        location.child("absent").walk()
    location.child("object").create(b"x")
    with pytest.raises(NotADirectoryError):
        location.child("object").walk()


def test_a_folder_that_was_emptied_is_no_object(location: Location) -> None:
    location.child("emptied", "object").create(b"x")
    location.child("kept").create(b"x")
    location.child("emptied", "object").delete()
    assert location.walk() == ["kept"]
    assert location.names() == ["kept"]


def test_an_empty_object_is_never_created_but_can_be_read(location: Location) -> None:
    place = location.child("marker")
    place.create(b"full")
    with pytest.raises(ValueError, match="cannot be created empty"):
        place.create(b"")
    assert place.read() == b"full"
    place.replace(b"")
    assert place.read() == b""
    assert place.read(limit=10) == b""


def test_an_object_too_large_for_one_chunk_of_s3fs_is_still_created_once(
    location: Location,
) -> None:
    place = location.child("large")
    data = os.urandom(2**20) * 101  # s3fs cuts from 100 MiB on
    assert place.create(data) is True
    assert place.create(b"other" * 2**20) is False
    assert place.read() == data


def test_of_eight_threads_one_creates_and_its_bytes_stay(location: Location) -> None:
    for round_number in range(3):
        place = location.child(f"race-{round_number}")
        barrier = threading.Barrier(8)

        def write(number: int, place: Location = place, gate: threading.Barrier = barrier) -> bool:
            gate.wait()
            return place.create(bytes([number]) * 100_000)

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(write, range(8)))
        assert made.count(True) == 1
        assert place.read() == bytes([made.index(True)]) * 100_000
        assert place.name in location.names()


def test_of_three_processes_one_creates_and_its_bytes_stay(location: Location) -> None:

    place = location.child("race")
    start = time.time() + 3
    texts = ["one", "two", "six"]
    racers = []
    for text in texts:
        order = json.dumps([place.url, dict(location.options), text, start])
        racers.append(subprocess.Popen([sys.executable, "-c", RACER, order]))
    codes = [racer.wait() for racer in racers]
    assert sorted(codes) == [0, 3, 3]
    assert place.read() == texts[codes.index(0)].encode() * 1000


def test_a_writer_killed_before_the_link_leaves_no_object(tmp_path: Path) -> None:
    place = Location(str(tmp_path / "parts" / "part.parquet"))
    done = subprocess.run([sys.executable, "-c", DIES_BEFORE_LINK, place.url], check=False)
    assert done.returncode == -signal.SIGKILL
    left = os.listdir(tmp_path / "parts")
    assert len(left) == 1
    assert (tmp_path / "parts" / left[0]).read_bytes() == b"complete bytes"
    assert place.parent.names() == []
    with pytest.raises(FileNotFoundError):
        place.read()
    assert place.create(b"the next one") is True


def test_stores_that_refuse_a_second_create_are_told_apart(location: Location) -> None:
    place = location.child("run.json")
    place.create(b"{}")
    assert creates_conditionally(place) is True
    assert place.read() == b"{}"


class LooksFirst(MemoryFileSystem):  # type: ignore[misc]
    """A store without a conditional write: fsspec looks for the object and then writes."""

    protocol = "looksfirst"
    pipe_file = AbstractFileSystem.pipe_file


def test_a_store_that_only_looks_first_is_not_conditional() -> None:
    fsspec.register_implementation("looksfirst", LooksFirst, clobber=True)
    place = Location("looksfirst://folder/x")
    assert place.create(b"x") is True
    assert place.create(b"y") is False
    assert creates_conditionally(place) is False
    assert place.read() == b"x"
    assert place.parent.names() == ["x"]


def test_a_location_is_absolute_and_pickles_without_its_connection(
    location: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    location.child("x").create(b"x")
    again = pickle.loads(pickle.dumps(location))
    assert again == location
    assert again.child("x").read() == b"x"
    assert b"filesystem" not in pickle.dumps(location)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Location("a/../b").url == str(tmp_path / "b")
    assert Location("~/b").url == "/home/somebody/b"
    assert Location("file:///a/b/").url == "/a/b"
    assert Location("s3://bucket/a/").url == "s3://bucket/a"
    assert (Location("s3://bucket/a/b.csv").name, Location("/a/b.csv").name) == ("b.csv", "b.csv")
    with pytest.raises(ValueError, match="got an empty text"):
        Location("")


def test_options_are_shown_nowhere(s3: Any) -> None:
    wrong = Location(s3.url("x"), {**s3.options, "secret": "very-secret-text"})
    with pytest.raises(CredentialsRefused) as caught:
        wrong.read()
    shown = [repr(wrong), str(wrong), str(caught.value), repr(pickle.dumps(caught.value))]
    for text in shown:
        assert "secret" not in text.replace("signature", "")
        assert "tester" not in text
        assert "x" in text
    signed = Location("https://user:word@host/a.jpg?Signature=abc")
    assert str(signed) == "https://host/a.jpg"
    assert "abc" not in repr(signed)


def test_credentials_are_infrastructure_and_one_denied_key_is_not(s3: Any) -> None:
    s3.location("x").create(b"x")
    for options in ({"key": "nobody"}, {"secret": "wrong"}):
        with pytest.raises(CredentialsRefused):
            Location(s3.url("x"), {**s3.options, **options}).read()
    stranger = Location(s3.url("x"), s3.options_without_rights)
    with pytest.raises(PermissionError, match="Access Denied"):
        stranger.read()
    with pytest.raises(WriteRefused, match=r"^cannot write s3://.*: Access Denied"):
        stranger.create(b"y")


def test_a_dead_store_is_infrastructure_after_bounded_attempts() -> None:
    options = {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:1"}
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"^s3://bucket/x: Could not connect"):
        Location("s3://bucket/x", options).read()
    assert time.monotonic() - started < 30


def test_what_can_never_exist_is_a_value_error(s3: Any) -> None:
    with pytest.raises(ValueError, match="Parameter validation failed"):
        Location("s3://tests", s3.options).read()
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        Location("nowhere://a/b").read()


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a FIFO, socket or device"):
        Location(str(tmp_path / "pipe")).read()
    with pytest.raises(IsADirectoryError):
        Location(str(tmp_path)).read()


def test_bugs_are_not_taken_for_the_store(location: Location) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        location.attempt(broken)


def test_importing_storage_loads_no_store_and_no_other_package() -> None:
    code = "import sys, storage.runs, storage.images, storage.manifests; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"aiohttp", "botocore", "explainer", "jobs", "ray", "s3fs", "torch"}
