"""A shard's images: every row gets its bytes or its own reason; a failing store fails the shard."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage.images import Fetched, Reading, fetch
from storage.locations import CredentialsRefused, Location, StorageUnavailable


class Handler(BaseHTTPRequestHandler):
    """Answers /<status> with that status."""

    def do_GET(self) -> None:
        status = int(self.path.partition("?")[0].strip("/"))
        body = b"bytes" if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def fetch_files(uris: list[str | None], options: dict[str, Any], **how: int) -> list[Fetched]:
    return fetch(
        pa.table({"uri": pa.array(uris, pa.string())}), Reading(options, allow_local=True, **how)
    )


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_order_is_kept_and_each_row_has_its_own_status(location: Location) -> None:
    location.child("good.jpg").create(b"good")
    location.child("empty.jpg").replace(b"")
    location.child("large.jpg").create(b"x" * 101)
    url = location.url
    uris = [f"{url}/good.jpg", None, f"{url}/absent.jpg", f"{url}/large.jpg", f"{url}/empty.jpg"]
    good, null, absent, large, empty = fetch_files(uris, location.options, max_bytes=100)
    assert (good.data, good.status, good.error) == (b"good", "ok", None)
    assert (null.status, null.error) == ("missing", "the manifest has no uri for this row")
    assert absent.status == "missing"
    assert absent.error is not None
    assert absent.error.startswith(f"{url}/absent.jpg: ")
    assert (large.data, large.status) == (None, "too_large")
    assert large.error == "more than 100 bytes, the limit"
    assert (empty.data, empty.status) == (b"", "ok")


def test_many_rows_keep_their_order(location: Location) -> None:
    for number in range(40):
        location.child(f"{number}.jpg").create(str(number).encode())
    uris = [f"{location.url}/{number}.jpg" for number in range(40)]
    got = fetch_files(uris, location.options, concurrency=7)
    assert [each.data for each in got] == [str(number).encode() for number in range(40)]


def test_what_is_no_regular_file_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    names = ["folder.jpg", "pipe.jpg", "x" * 300, "file/below.jpg", "dangling.jpg"]
    got = fetch_files([str(tmp_path / name) for name in names], {})
    assert [each.status for each in got] == [*["unsupported"] * 3, *["missing"] * 2]
    unknown, null_byte = fetch_files(["nowhere://a/b.jpg", str(tmp_path / "a\0b")], {})
    assert (unknown.status, null_byte.status) == ("denied", "unsupported")
    assert str(unknown.error).startswith("not read: nowhere://a/b.jpg: a url is a local path or")


def test_a_denied_key_is_a_row_and_refused_credentials_are_not(s3: Any) -> None:
    s3.location("a.jpg").create(b"x")
    (denied,) = fetch_files([s3.url("a.jpg")], s3.options_without_rights)
    assert (denied.status, denied.error) == ("denied", f"{s3.url('a.jpg')}: Access Denied.")
    with pytest.raises(CredentialsRefused):
        fetch_files([s3.url("a.jpg")], {**s3.options, "secret": "wrong"})


def test_answers_of_a_web_server_are_rows_or_infrastructure(web: str) -> None:
    statuses = {200: "ok", 404: "missing", 410: "missing", 403: "denied", 400: "unsupported"}
    got = fetch_files([f"{web}/{status}?Signature=hush" for status in statuses], {})
    assert [each.status for each in got] == list(statuses.values())
    assert got[0].data == b"bytes"
    assert got[1].error == f"{web}/404: FileNotFoundError"
    assert got[3].error == f"{web}/403: HTTP 403"
    for status, kind in ((401, CredentialsRefused), (503, StorageUnavailable)):
        with pytest.raises(kind, match=f"{status}: HTTP {status}$"):
            fetch_files([f"{web}/{status}?Signature=hush"] * 20, {}, concurrency=2)
