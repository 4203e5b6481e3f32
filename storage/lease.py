"""Who holds a run: one driver at a time.

A driver claims a run by creating lease/<n>.json with the next number, which only one can do, and
renews what it wrote there. The highest number holds the run until it is released, or until its
holder is dead: at once where that can be seen from here, else when nothing was renewed for
EXPIRY_SECONDS by the clock of the one who waits, so that clocks need not agree.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from storage.locations import Location, StorageUnavailable
from storage.times import written

EXPIRY_SECONDS = 30.0
RENEW_SECONDS = 10.0
_POLL_SECONDS = 1.0
_CLOCKS_AGREE = 5.0
_RENEWAL_TAKES = 3.0
_CLAIM = re.compile(r"(\d{8,})\.json")


class RunHeld(Exception):  # noqa: N818 - a statement about a run
    """Another driver holds the run; the message says which, and what to do."""


@dataclass(frozen=True)
class Claim:
    """A driver's hold on a run as it is written; `beat` counts its renewals.

    `since` is when it was made, by its driver's clock; "" where an earlier version made it.
    """

    token: str
    host: str
    machine: str
    pid: int
    process_started: str
    beat: int = 0
    released: bool = False
    since: str = ""

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its process could be seen from here."""
        return self.machine == _machine()

    @property
    def is_alive_here(self) -> bool:
        """Whether its process runs on this machine."""
        return self.is_of_this_machine and _started(self.pid) == self.process_started


@dataclass(frozen=True)
class Holder:
    """A live driver's hold on a run; `renewed` is when, by the store's clock, if that tells."""

    claim: Claim
    renewed: float | None


class Lease:
    """One driver's hold on the run at `root`. `seconds` are those of an expiry.

    `lost` names the driver that took the run over, once it is noticed.
    """

    def __init__(self, root: Location, seconds: float = EXPIRY_SECONDS) -> None:
        self.root, self.seconds = root, seconds
        self.folder = root.child("lease")
        self.number = 0
        self.claim = Claim(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=_started(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.lost: str | None = None
        self._ended = threading.Event()

    @contextmanager
    def held(self, take_over: bool, waiting: Callable[[str], None]) -> Iterator["Lease"]:
        """Hold the run for a while; `waiting` is told, each second, what is waited for.

        Raises RunHeld where another driver is alive, unless `take_over`; StorageUnavailable.
        """
        self._acquire(take_over, waiting)
        renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        renewing.start()
        try:
            yield self
        finally:
            self._ended.set()
            renewing.join()
            self._release()

    def check(self) -> None:
        """Raise RunHeld where another driver has taken the run over."""
        if self.lost is not None:
            raise RunHeld(f"{self.root}: {self.lost} has taken this run over; this driver stops")

    def _acquire(self, take_over: bool, waiting: Callable[[str], None]) -> None:
        while True:
            number, claim = self._latest()
            free = claim is None or claim.released or take_over
            if claim is not None and not free:
                if claim.is_alive_here:
                    raise self._held(claim)
                if not claim.is_of_this_machine:
                    self._outwait(number, claim, waiting)
            made = self.folder.child(f"{number + 1:08d}.json").create(_encode(self.claim))
            # After a lost response a claim of our own is in the way.
            if made or self._read(number + 1) == self.claim:
                self.number = number + 1
                return
            take_over = False  # somebody was quicker, who is not whom it was meant for

    def holder(self) -> "Holder | None":
        """Whoever holds the run and is alive, for one who only wants to know; writes nothing.

        A driver elsewhere lives if it renewed its hold within an expiry. Where that cannot be told
        from the store's clock and ours, it is watched until it should have renewed.
        """
        number, claim = self._latest()
        if claim is None or claim.released:
            return None
        renewed = written(self.folder).get(f"{number:08d}.json")
        if claim.is_of_this_machine:
            return Holder(claim, renewed) if claim.is_alive_here else None
        age = None if renewed is None else time.time() - renewed
        is_fresh = age is not None and -_CLOCKS_AGREE < age < self.seconds
        return Holder(claim, renewed) if is_fresh else self._seen_renewing(number, claim)

    def _seen_renewing(self, number: int, claim: Claim) -> "Holder | None":
        wait = self.seconds * (RENEW_SECONDS + _RENEWAL_TAKES) / EXPIRY_SECONDS
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(min(_POLL_SECONDS, wait / 4))
            now = self._read(number)
            if now is None or now.released:
                return None
            if now != claim:
                return Holder(now, written(self.folder).get(f"{number:08d}.json"))
        return None

    def _latest(self) -> tuple[int, Claim | None]:
        """The highest claim and its number, also where a listing lags behind."""
        numbers = [int(m[1]) for n in self.folder.names() if (m := _CLAIM.fullmatch(n))]
        number = max(numbers, default=0)
        while self._read(number + 1) is not None:
            number += 1
        return number, self._read(number) if number else None

    def _read(self, number: int) -> Claim | None:
        try:
            return Claim(**json.loads(self.folder.child(f"{number:08d}.json").read()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # none of ours: nobody renews it
            return Claim("", "an unknown host", "", 0, "")

    def _outwait(self, number: int, claim: Claim, waiting: Callable[[str], None]) -> None:
        """Return when nothing was renewed for an expiry; raise RunHeld where something was."""
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0:
            waiting(f"{_named(claim)} held this run and may be dead: {left:.0f} s until that is so")
            time.sleep(min(_POLL_SECONDS, left))
            now = self._read(number)
            if now is None or now.released:
                return
            if now != claim:
                raise self._held(now)

    def _held(self, claim: Claim) -> RunHeld:
        return RunHeld(
            f"{self.root} is held by {_named(claim)}, which is alive; wait for it, stop it, or "
            "take the run over with --take-over"
        )

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds * RENEW_SECONDS / EXPIRY_SECONDS):
            try:
                number, claim = self._latest()
                if number > self.number:
                    self.lost = _named(claim) if claim is not None else "another driver"
                    return
                self.claim = replace(self.claim, beat=self.claim.beat + 1)
                self._mine.replace(_encode(self.claim))
            except (StorageUnavailable, OSError):
                continue  # the store may come back before anybody else wants the run

    @property
    def _mine(self) -> Location:
        return self.folder.child(f"{self.number:08d}.json")

    def _release(self) -> None:
        if self.lost is not None:
            return
        try:
            self._mine.replace(_encode(replace(self.claim, released=True)))
        except (StorageUnavailable, OSError):
            return  # it expires by itself, and what stopped the store is told elsewhere


def _named(claim: Claim) -> str:
    return f"the driver on {claim.host} (process {claim.pid})"


def _encode(claim: Claim) -> bytes:
    return (json.dumps(asdict(claim), indent=2) + "\n").encode()


def _machine() -> str:
    """What sees the same processes: a boot of one machine, and in it one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine started, so that a reused number is told; "" if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self").exists() else _started_elsewhere(pid)
    return "" if fields[0] == "Z" else fields[19]


def _started_elsewhere(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
