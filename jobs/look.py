"""A run as it is seen from its directory: its state, its driver, its pace, and what lies beside."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.config import ConfigurationError, Exit
from jobs.pace import Pace, Written, pace
from jobs.plan import Shard, remaining
from storage.exports import entries
from storage.lease import Holder, Lease
from storage.parts import STATUSES, images_by_status
from storage.runs import FINISHED, NotARun, Run, Start, read_description

READERS = 16
STATUS_COLUMNS = ["status", "target_rank"]

State = Literal["not started", "running", "stopped", "complete", "failed"]
# Of what lies beside a run: its folder, and in that the folder of what it commits.
BESIDE: dict[Literal["audit", "evaluate"], str] = {"audit": "classes", "evaluate": "parts"}


@dataclass(frozen=True)
class Driver:
    """Who holds a run: `since` by its own clock, `renewed` by the store's; None where unknown."""

    host: str
    process: int
    since: str | None
    renewed: str | None


@dataclass(frozen=True)
class Beside:
    """An audit or an evaluation of the run: `done` counts its committed classes or shards.

    `of_these_rows` is False where the run's rows have changed since, None while it has none to
    compare.
    """

    kind: Literal["audit", "evaluate"]
    name: str
    state: State
    done: int
    driver: Driver | None
    of_these_rows: bool | None


@dataclass(frozen=True)
class Status:
    """A run as it is seen. Times are in seconds, dates in UTC by the store's clock.

    `attempt` is the number of the last driver's start, 0 before the first. `statuses` are there for
    a finished run, or where they were asked for: images by status, of the rows that are written.
    `pace_unknown` says why there is no `images_per_second`; both are None where no driver explains.
    """

    run: str
    location: str
    state: State
    rows: int
    rows_done: int
    shards: int
    shards_done: int
    driver: Driver | None
    attempt: int
    images_per_second: float | None
    pace_unknown: str | None
    seconds_left: float | None
    last_part: str | None
    seconds_since_last_part: float | None
    statuses: Mapping[str, int] | None
    errors: Mapping[str, int]
    beside: tuple[Beside, ...]

    @property
    def code(self) -> Exit:
        """0 complete, 3 failed as `saliency explain` fails, 1 for whatever is not yet finished."""
        finished = {"complete": Exit.COMPLETE, "failed": Exit.TOO_MANY_FAILED}
        return finished.get(self.state, Exit.INCOMPLETE)


def look(run: Run, shards: list[Shard], *, failures: bool) -> Status:
    """The run as it is now: one listing of its parts, and some small files.

    With `failures` the footer of each part is read too. Raises NotARun where one of the small files
    is none of this program's, StorageUnavailable.
    """
    holder, start, committed = Lease(run.root).holder(), run.last_attempt(), run.committed_at()
    summary = run.read_summary() or {}  # after the parts: it is written after them
    done = [shard for shard in shards if shard.index in committed]
    state = _state(summary, holder, remaining(shards, committed))
    is_running = state == "running"
    rows, rows_done = (sum(shard.rows for shard in each) for each in (shards, done))
    known = _pace(done, committed, start, holder) if is_running else Pace(None)
    last = max((at for at in committed.values() if at is not None), default=None)
    renewed = None if holder is None else holder.renewed
    statuses: Mapping[str, int] | None = summary.get("statuses") if state in FINISHED else None
    if statuses is None and failures:
        statuses = count_statuses(run, committed)
    return Status(
        run=run.id,
        location=run.root.shown,
        state=state,
        rows=rows,
        rows_done=rows_done,
        shards=len(shards),
        shards_done=len(done),
        driver=_driver(holder),
        attempt=0 if start is None else start.number,
        images_per_second=known.images_per_second,
        pace_unknown=known.unknown,
        seconds_left=known.seconds_for(rows - rows_done),
        last_part=_date(last),
        seconds_since_last_part=(
            None if renewed is None or last is None else max(0.0, renewed - last)
        ),
        statuses=statuses,
        errors=summary.get("errors", {}) if state in ("stopped", "failed") else {},
        beside=tuple(_beside(run, summary.get("parts_digest"))),
    )


def _state(summary: Mapping[str, Any], holder: Holder | None, todo: Collection[Shard]) -> State:
    told = summary.get("state")
    if told in FINISHED and "parts_digest" in summary and not todo:
        return "complete" if told == "complete" else "failed"
    if holder is not None:
        return "running"
    if told == "failed":
        return "failed"
    return "not started" if told is None else "stopped"


def _pace(
    done: list[Shard],
    committed: Mapping[int, float | None],
    start: Start | None,
    holder: Holder | None,
) -> Pace:
    """The pace of the driver that holds the run."""
    since = holder.claim.since if holder is not None else ""
    # Both by the driver's clock, in UTC, to the second.
    if start is None or str(start.info.get("started", "")) < since:
        return Pace(None, "replicas are not at work yet")
    if start.info.get("execution", {}).get("retry_failed"):
        return Pace(None, "failed images are explained again (--retry-failed)")
    return pace([Written(s.rows, committed[s.index]) for s in done], start.at)


def count_statuses(run: Run, committed: Collection[int]) -> dict[str, int]:
    """Images by status of the rows that are written, from the footers of their parts.

    Of parts that earlier versions wrote, two columns are read. Raises ConfigurationError where a
    part is damaged, StorageUnavailable.
    """

    def of_part(index: int) -> Mapping[str, int]:
        try:
            told = run.read_part_metadata(index).get(STATUSES)
            if told is None:
                return images_by_status(run.read_part(index, STATUS_COLUMNS))
            return {str(status): int(count) for status, count in json.loads(told).items()}
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ConfigurationError(
                [f"RUN: cannot read {run.part(index)}: {error}; `saliency verify` tells more"]
            ) from error

    total: Counter[str] = Counter()
    with ThreadPoolExecutor(READERS, "footers") as pool:
        for counts in pool.map(of_part, sorted(committed)):
            total.update(counts)
    return dict(sorted(total.items()))


def _beside(run: Run, parts_digest: str | None) -> Iterator[Beside]:
    """The audits and evaluations of a run, each with its own state."""
    for kind, commits in BESIDE.items():
        for name in entries(run.root.child(kind)):
            place = run.root.child(kind, name)
            try:
                description = read_description(place)
            except (NotADirectoryError, NotARun):  # what somebody put there
                continue
            if description is None:
                continue
            of = description["fingerprint_of"].get("parts_digest")
            holder = Lease(place).holder()
            summary = Run(place, description).read_summary() or {}
            ended: State = "complete" if summary.get("state") == "complete" else "stopped"
            yield Beside(
                kind=kind,
                name=name,
                state="running" if holder is not None else ended,
                done=len(place.child(commits).names()),
                driver=_driver(holder),
                of_these_rows=None if parts_digest is None else of == parts_digest,
            )


def _driver(holder: Holder | None) -> Driver | None:
    if holder is None:
        return None
    claim = holder.claim
    return Driver(claim.host, claim.pid, claim.since or None, _date(holder.renewed))


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
