"""SeaweedFS, a real S3 server that honours If-None-Match: started, killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUCKET = "tests"
RIGHTS = ("Admin", "Read", "Write", "List", "Tagging")
ROLES = ("master", "volume", "filer", "s3")
START_SECONDS = 60.0


@dataclass
class Weed:
    """One server on free ports of this machine, with its data and its log in `folder`.

    It knows the identity of `options()`, and a "stranger" who may do nothing in the bucket.
    """

    folder: Path
    _ports: list[int] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[3]}"

    def options(self, key: str = "tester", secret: str = "testing-secret") -> dict[str, Any]:
        """What s3fs needs to be `key` here."""
        return {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": self.endpoint}}

    def start(self) -> None:
        """Return once the bucket can be written to; a second start finds the data of the first."""
        self._ports = self._ports or free_ports(2 * len(ROLES))
        (self.folder / "data").mkdir(exist_ok=True)
        identities = [
            _identity("tester", "testing-secret", RIGHTS),
            _identity("stranger", "strangers-secret", ("Read:elsewhere",)),
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        weed = Path(sys.executable).parent / "weed"
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [weed, "server", *self._flags()],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait_until_up(self._process)

    def kill(self) -> None:
        """End it as a loss of power would end the process."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _flags(self) -> list[str]:
        ports, grpc = self._ports[: len(ROLES)], self._ports[len(ROLES) :]
        flags = [f"-{role}.port={port}" for role, port in zip(ROLES, ports, strict=True)]
        flags += [f"-{role}.port.grpc={port}" for role, port in zip(ROLES, grpc, strict=True)]
        flags += [f"-{role}.localSocket={self.folder}/{role}.sock" for role in ("filer", "s3")]
        flags += ["-master.electionTimeout=1s"]  # a second start has to elect itself
        flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        flags += ["-s3", f"-s3.config={self.folder}/s3.json", f"-dir={self.folder}/data"]
        return [*flags, "-ip=127.0.0.1"]

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        from storage.locations import Location

        bucket = Location(f"s3://{BUCKET}", self.options())
        until = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(self.endpoint, timeout=1).close()
            except urllib.error.HTTPError:  # it answers, if only to say that we gave no key
                try:
                    bucket.filesystem.makedirs(BUCKET, exist_ok=True)
                    bucket.child(".up").replace(b"up")
                except Exception:  # noqa: BLE001 - the gateway is up before the storage behind it
                    time.sleep(0.2)
                else:
                    return
            except OSError:
                time.sleep(0.1)
        log = (self.folder / "log").read_text(errors="replace")
        raise RuntimeError(f"the S3 server did not come up:\n{log[-2000:]}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _identity(name: str, secret: str, actions: tuple[str, ...]) -> dict[str, Any]:
    credentials = [{"accessKey": name, "secretKey": secret}]
    return {"name": name, "credentials": credentials, "actions": actions}
