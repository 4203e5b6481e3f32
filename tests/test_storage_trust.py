"""What a remote manifest may not make a job read, however it is written down."""

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import trust
from storage.columns import IN_PARQUET, IN_TAR
from storage.images import Fetched, Reading, fetch
from storage.locations import StorageUnavailable
from storage.shown import printable, shown

PERMIT = "give --allow-local to let it name local files and private hosts"


class Server:
    """A web server on an address of this machine; `asked` are the paths that it was asked for.

    /to/URL redirects there, /round in circles, and everything else is b"secret".
    """

    def __init__(self, host: str) -> None:
        self.asked: list[str] = []
        self.http = ThreadingHTTPServer((host, 0), partial(Handler, self))
        self.url = f"http://{host}:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: Any) -> None:
        self.own = server
        super().__init__(*args)

    def do_GET(self) -> None:
        self.own.asked.append(self.path)
        target = self.path if self.path == "/round" else self.path.partition("/to/")[2]
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "0" if target else "6")
        self.end_headers()
        if not target:
            self.wfile.write(b"secret")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def start(host: str) -> Server:
        servers.append(Server(host))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fetch_one(
    uri: str, options: dict[str, Any] | None = None, *, allow_local: bool = True
) -> Fetched:
    reading = Reading(options or {}, allow_local=allow_local)
    (got,) = fetch(pa.table({"uri": [uri]}), reading)
    return got


def remotely(uri: str, options: dict[str, Any] | None = None) -> Fetched:
    """As a remote manifest's row."""
    return fetch_one(uri, options, allow_local=False)


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "secret").write_bytes(b"secret")
    return str(tmp_path / "secret")


@pytest.mark.parametrize("prefix", ["", "file://", "local://", "~/../../../../.."])
def test_a_remote_manifest_names_no_local_file(secret: str, prefix: str) -> None:
    got = remotely(prefix + secret)
    assert (got.data, got.status) == (None, "denied")
    rule = f"a remote manifest may not name local files; {PERMIT}"
    assert got.error == f"not read: {prefix}{secret}: {rule}"


@pytest.mark.parametrize(
    "form",
    [
        *("simplecache::file://{}", "filecache::file://{}", "blockcache::local://{}"),
        *("simplecache::{}", "zip://a::file://{}", "tar://x::simplecache::file://{}"),
        *("s3://a::b", "https://::1/a", "reference://::{}"),
    ],
)
def test_chained_urls_are_never_read(secret: str, form: str) -> None:
    for allowed in (True, False):
        got = fetch_one(form.format(secret), allow_local=allowed)
        assert (got.data, got.status) == (None, "denied")
        assert "urls that are chained with '::' are not allowed; name the" in str(got.error)


@pytest.mark.parametrize(
    "uri",
    [
        *("ftp://h/a", "memory://a", "FILE:///etc/passwd", "File:///etc/passwd", "github://o:r@/a"),
        *("ssh://h/a", "smb://h/a", "data://a", "dir:///etc/passwd", "webhdfs://h/a"),
        *(" file:///etc/passwd", "\tfile:///etc/passwd", "://etc/passwd"),
    ],
)
def test_other_schemes_are_never_read(uri: str) -> None:
    for allowed in (True, False):
        got = fetch_one(uri, allow_local=allowed)
        assert (got.data, got.status) == (None, "denied")
        schemes = ", ".join(trust.SCHEMES)
        assert f"a url is a local path or begins with one of {schemes}; got '" in str(got.error)


@pytest.mark.parametrize(
    "uri",
    ["s3://b/../other/k", "https://h/a/%2e%2E/b", "https://h/a/..", "gs://b/a/..\\b", "s3://../k"],
)
def test_a_remote_manifest_climbs_to_no_folder_above(uri: str) -> None:
    got = remotely(uri)
    assert (got.data, got.status) == (None, "denied")
    assert "a remote manifest's uris may not hold the segment '..'; write them" in str(got.error)


def test_dots_in_names_and_queries_are_no_segments() -> None:
    for uri in ("s3://b/a..b/..c", "https://h/a...jpg?to=/../b"):
        trust.check_remote(uri)


def test_a_local_manifest_names_local_files_and_private_hosts(
    secret: str, serve: Callable[[str], Server]
) -> None:
    server = serve("127.0.0.1")
    for uri in (secret, f"file://{secret}", f"local://{secret}", f"{server.url}/a"):
        assert fetch_one(uri).data == b"secret"


HOSTS = {
    "127.0.0.1": "127.0.0.1",
    "127.8.8.8": "127.8.8.8",
    "localhost": r"(127\.0\.0\.1|::1)",
    "0x7f.1": "127.0.0.1",
    "0.0.0.0": "0.0.0.0",
    "169.254.169.254": "169.254.169.254",
    "10.0.0.1": "10.0.0.1",
    "[0:0:0:0:0:0:0:1]": "0:0:0:0:0:0:0:1|::1",
    "[0:0:0:0:0:ffff:7f00:1]": ".*7f00:1|::ffff:127.0.0.1",
}


@pytest.mark.parametrize("host", list(HOSTS))
def test_a_remote_manifest_reaches_no_private_host(
    serve: Callable[[str], Server], host: str
) -> None:
    server = serve("127.0.0.1")
    port = server.http.server_port
    for scheme in ("http", "https"):
        uri = f"{scheme}://user:hush@{host}:{port}/a.jpg?Signature=hush"
        got = remotely(uri)
        assert (got.data, got.status) == (None, "denied")
        assert re.fullmatch(
            rf"not read: {scheme}://{re.escape(host)}:{port}/a\.jpg: the host's address is "
            rf"({HOSTS[host]}), and a remote manifest may name hosts of the public internet alone; "
            + PERMIT,
            str(got.error),
        )
    assert server.asked == []


def test_a_parquet_file_or_tar_at_a_private_host_is_not_read_either(
    serve: Callable[[str], Server],
) -> None:
    server = serve("127.0.0.1")
    for places in (IN_TAR, IN_PARQUET):
        table = pa.table({"uri": [f"{server.url}/a"]} | {name: [600] for name in places})
        (got,) = fetch(table, Reading({}))
        assert got.status == "denied"
        assert "the host's address is 127.0.0.1" in str(got.error)
    assert server.asked == []


def test_a_redirect_from_a_public_host_leads_to_no_private_one(
    serve: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    public, private = serve("127.0.0.1"), serve("127.0.0.2")
    # No server of these tests has a public address: the first one counts as if it had.
    monkeypatch.setattr(trust, "is_public", lambda address: address == "127.0.0.1")
    assert remotely(f"{public.url}/a").data == b"secret"
    assert remotely(f"{public.url}/to/{public.url}/a").data == b"secret"
    got = remotely(f"{public.url}/to/{private.url}/a")
    assert (got.data, got.status) == (None, "denied")
    assert "the host's address is 127.0.0.2, and a remote manifest may" in str(got.error)
    assert private.asked == []
    (got,) = fetch(
        pa.table({"uri": [f"{public.url}/to/{private.url}/a"]}), Reading({}, allow_local=True)
    )
    assert got.data == b"secret"


def test_a_redirect_to_a_file_or_in_circles_is_one_image_s_fault(
    serve: Callable[[str], Server], secret: str
) -> None:
    server = serve("127.0.0.1")
    for path in (f"to/file://{secret}", "round"):
        got = fetch_one(f"{server.url}/{path}")
        assert (got.data, got.status) == (None, "unsupported")


def test_a_host_with_one_private_address_is_refused(
    serve: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("127.0.0.1")
    monkeypatch.setattr(trust, "is_public", lambda address: address != "127.0.0.1")
    got = remotely(f"http://localhost:{server.http.server_port}/a")
    assert got.status == "denied"
    assert server.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808")),
        *((address, False) for address in ("192.168.1.1", "172.16.0.1", "100.64.0.1", "224.0.0.1")),
        *((address, False) for address in ("fe80::1%eth0", "fd00::1", "::", "ff02::1")),
        *((address, False) for address in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::")),
        *((address, False) for address in ("255.255.255.255", "198.18.0.1", "64:ff9b:1::1")),
        *((address, False) for address in ("::10.0.0.1", "fec0::1", "::1", "2001:db8::1")),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert trust.is_public(address) is public


def test_a_store_s_own_endpoint_is_the_user_s_word(s3: Any) -> None:
    s3.location("a.jpg").create(b"picture")
    got = remotely(s3.url("a.jpg"), s3.options)
    assert got.data == b"picture"


def test_a_rule_s_refusal_is_told_from_a_store_s(s3: Any) -> None:
    s3.location("a.jpg").create(b"x")
    (denied,) = fetch(pa.table({"uri": [s3.url("a.jpg")]}), Reading(s3.options_without_rights))
    assert denied.status == "denied"
    assert not trust.is_refusal(denied.error)
    assert trust.is_refusal(remotely("/etc/passwd").error)
    assert not trust.is_refusal(None)


def test_a_person_names_any_place_but_no_chained_url(tmp_path: Path) -> None:
    assert trust.named(str(tmp_path / "a::b")).url == str(tmp_path / "a::b")
    with pytest.raises(ValueError, match=r"^simplecache::s3://b/k: urls that are chained with '::"):
        trust.named("simplecache::s3://b/k?Signature=hush")
    with pytest.raises(ValueError, match="a url is a local path or begins with one of file, local"):
        trust.named("ftp://h/a")


def test_what_is_shown_of_a_url_is_one_printable_line_without_secrets() -> None:
    assert shown("https://u:p@h/a\x1b[2J\n.jpg?sig=x y") == "https://h/a\\x1b[2J\\n.jpg"
    assert shown("/a?b\x07\u202egpj.\udc80") == "/a?b\\x07\\u202egpj.\\udc80"
    assert printable("naïve 日本語 \u200d é::ü") == "naïve 日本語 \u200d é::ü"


def test_the_errors_of_odd_names_are_one_printable_line(tmp_path: Path) -> None:
    for uri in ("/nowhere\x1b]0;x\x07\nok.jpg", "http://[bad\x1b/a\nb?Signature=hush hush"):
        got = fetch_one(uri)
        assert got.data is None
        assert printable(str(got.error)) == got.error
        assert "hush" not in str(got.error)


def test_a_dead_host_is_infrastructure_and_tells_no_signature() -> None:
    with pytest.raises(StorageUnavailable) as caught:
        fetch_one("http://u:hush@127.0.0.1:1/a.jpg?Signature=hush hush")
    assert "hush" not in str(caught.value)
    assert str(caught.value).startswith("http://127.0.0.1:1/a.jpg: ")


def test_parquet_with_images_of_a_private_store_is_read_by_permission(
    serve: Callable[[str], Server], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": [b"picture"]}), tmp_path / "a.parquet")
    places = {"uri": [str(tmp_path / "a.parquet")], "row_group": [0], "row_in_group": [0]}
    assert fetch(pa.table(places), Reading({}, "image", allow_local=True))[0].data == b"picture"
    (got,) = fetch(pa.table(places), Reading({}, "image"))
    assert got.status == "denied"


def test_options_of_another_store_are_one_image_s_error_and_are_not_quoted(
    serve: Callable[[str], Server],
) -> None:
    server = serve("127.0.0.1")
    for uri, options in (
        (f"{server.url}/a.jpg?Signature=hush", {"key": "hush", "secret": "hush"}),
        ("s3://bucket/a.jpg", {"headers": {"Authorization": "hush"}}),
    ):
        scheme = uri.partition("://")[0]
        got = fetch_one(uri, options)
        assert got.status == "unsupported"
        plain = uri.partition("?")[0]
        assert got.error == f"{plain}: the options given are not for {scheme}:// urls"
    assert server.asked == []
