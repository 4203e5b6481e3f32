"""An S3 server's front door that fails on purpose: a small HTTP proxy, in a thread of its own.

    with FaultyStore("http://127.0.0.1:8333") as store:
        store.inject(Fault("slow_down", rate=0.05), Fault("reset_after", methods=("PUT",)))

Clients use `store.endpoint` in place of the server's. Requests reach the server as they were
signed, Host header included; bodies are held whole. Which requests fail follows from the seed and
from their order.
"""

import asyncio
import html
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import unquote

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

Kind = Literal[
    "slow_down",  # 503 SlowDown
    "reset",  # the connection is reset before the server hears of the request
    "reset_after",  # the server does what it was asked, and its answer is lost
    "stall",  # the answer comes `seconds` late
    "expired",  # 400 ExpiredToken
    "lagging",  # listings leave out objects younger than `seconds`
    "refuse_writes",  # 403 AccessDenied for whatever is not read
]
LARGEST_BODY = 2**30
_ANSWERS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "refuse_writes": (403, "AccessDenied", "Access Denied."),
}
# Of one connection, or what the two libraries write by themselves.
_OF_THE_HOP = {"connection", "content-length", "date", "expect", "keep-alive", "transfer-encoding"}
_ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>(.*?)</Key>", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """What befalls a share (`rate`) of the requests with one of `methods`, () for all, and with a
    path that `path` is found in; the first `times` of them, where that is given.
    """

    kind: Kind
    rate: float = 1.0
    seconds: float = 0.0
    methods: tuple[str, ...] = ()
    path: str = ""
    times: int | None = None

    def concerns(self, method: str, path: str) -> bool:
        """Whether a request may meet this fault at all."""
        if self.kind == "refuse_writes" and method in ("GET", "HEAD"):
            return False
        if self.kind == "lagging" and method != "GET":
            return False
        return (not self.methods or method in self.methods) and bool(re.search(self.path, path))


@dataclass(frozen=True)
class Request:
    """A request that came: when, by the monotonic clock, and the kinds of faults that it met."""

    at: float
    method: str
    path: str
    met: tuple[Kind, ...]


@dataclass
class _Armed:
    """A fault at work, and how many requests have met it."""

    fault: Fault
    met: int = 0


@dataclass
class FaultyStore:
    """The proxy before the S3 server at `server`.

    `requests` are all since the start, or since a caller cleared them.
    """

    server: str
    seed: int = 0
    requests: list[Request] = field(default_factory=list)
    _made: dict[str, float] = field(default_factory=dict)
    _faults: list["_Armed"] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _port: int = 0

    def __enter__(self) -> Self:
        self._random = random.Random(self.seed)
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-store")
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:  # whatever it is, the thread must not outlive it
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        finally:
            self._stop()

    def inject(self, *faults: Fault) -> None:
        """Let these befall requests from now on, in place of those before."""
        self._faults = [_Armed(fault) for fault in faults]

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def met(self) -> Counter[str]:
        """How many requests met a fault of each kind."""
        return Counter(kind for request in list(self.requests) for kind in request.met)

    async def _open(self) -> None:
        self._client = ClientSession(
            auto_decompress=False,
            connector=TCPConnector(limit=0, force_close=True),  # the server may be restarted
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, connect=10),
        )
        application = web.Application(client_max_size=LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _faults_of(self, method: str, path: str) -> list[Fault]:
        """Those that this request meets; each that could be met takes one random number."""
        found = []
        for armed in self._faults:
            fault = armed.fault
            if not fault.concerns(method, path) or self._random.random() >= fault.rate:
                continue
            if fault.times is None or armed.met < fault.times:
                armed.met += 1
                found.append(fault)
        return found

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = unquote(request.path)
        met = self._faults_of(request.method, path)
        kinds = tuple(fault.kind for fault in met)
        self.requests.append(Request(time.monotonic(), request.method, path, kinds))
        await asyncio.sleep(sum(fault.seconds for fault in met if fault.kind == "stall"))
        for kind in kinds:
            if kind in _ANSWERS:
                return _refusal(request.method, *_ANSWERS[kind])
        if "reset" in kinds:
            return _reset(request)
        try:
            answer, data = await self._forward(request, body)
        except (ClientError, OSError, TimeoutError):
            return _reset(request)  # as the server's own death would look
        if "reset_after" in kinds:
            return _reset(request)
        lags = [fault.seconds for fault in met if fault.kind == "lagging"]
        if lags and "list-type" in request.query and answer.status == 200:
            bucket = path.strip("/")
            answer.body = self._without_young(data, bucket, max(lags))
        return answer

    async def _forward(self, request: web.Request, body: bytes) -> tuple[web.Response, bytes]:
        """The server's answer, and its body."""
        kept = [(k, v) for k, v in request.headers.items() if k.lower() not in _OF_THE_HOP]
        async with self._client.request(
            request.method,
            URL(self.server + request.raw_path, encoded=True),
            headers=CIMultiDict(kept),
            data=body,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            allow_redirects=False,
        ) as answer:
            data = await answer.read()
        if request.method == "PUT" and answer.status == 200:
            self._made.setdefault(unquote(request.path), time.monotonic())
        headers = [(k, v) for k, v in answer.headers.items() if k.lower() not in _OF_THE_HOP]
        if request.method == "HEAD":  # the length is of what a GET would bring
            headers += [("Content-Length", answer.headers.get("Content-Length", "0"))]
        return web.Response(status=answer.status, headers=CIMultiDict(headers), body=data), data

    def _without_young(self, listing: bytes, bucket: str, seconds: float) -> bytes:
        """An XML listing less the objects that were first written through here so lately."""
        now = time.monotonic()

        def keep(entry: re.Match[bytes]) -> bytes:
            key = _KEY.search(entry[0])
            name = unquote(html.unescape(key[1].decode())) if key is not None else ""
            made = self._made.get(f"/{bucket}/{name}")
            return b"" if made is not None and now - made < seconds else entry[0]

        return _ENTRY.sub(keep, listing)


def _refusal(method: str, status: int, code: str, message: str) -> web.Response:
    """An error as S3 words it."""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>0</RequestId></Error>"
    )
    return web.Response(
        status=status, text="" if method == "HEAD" else text, content_type="application/xml"
    )


def _reset(request: web.Request) -> web.Response:
    """End the connection by a TCP reset; the answer that is returned goes nowhere."""
    transport = request.transport
    if transport is not None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
