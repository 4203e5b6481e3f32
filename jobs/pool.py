"""The driver's side of the replicas: keep them alive, hand out shards, take back reports."""

import time
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import ray
import torch
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from explainer import PrecisionError
from jobs.cluster import INFRASTRUCTURE, ClusterError, Resources, asked_and_there, reason
from jobs.config import ConfigurationError, ExecutionConfig
from jobs.crashes import MOST_CRASHED, Suspicion
from jobs.loader import load_batch
from jobs.patience import Patience
from jobs.plan import Shard
from jobs.replica import Explains, Replica, ReplicaInfo
from jobs.worker import Job, ShardReport
from storage.locations import StorageUnavailable

MOST_ATTEMPTS = 3
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class ShardFailure:
    """A shard that is left undone, and why its last attempt failed."""

    shard: Shard
    error: str


@dataclass
class _Member:
    """A replica and what it was given: the shard in hand and the one that loads behind it.

    `since` is when it was given the shard, on the monotonic clock; `hung` says how long it took,
    once it was ended for that.
    """

    actor: Any
    since: float = 0.0
    hung: str | None = None
    ready: bool = False
    shard: Shard | None = None
    upcoming: Shard | None = None


@dataclass
class Pool:
    """Replicas that explain shards; a lost one is replaced and its shards go back to the queue.

    Of shards that are `committed` only the failed images are explained, again. A shard that kills
    is searched for the image that does (jobs.crashes). `replica` is the actor's
    class; `news` are sentences for the user, `retried` and `lost` count shards that went back to
    the queue and replicas that are gone; `first_ready` is when the first replica had its model,
    on the monotonic clock.
    """

    job: Job
    resources: Resources
    execution: ExecutionConfig
    committed: frozenset[int] = frozenset()
    replica: type[Explains] = Replica
    replicas: list[ReplicaInfo] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    retried: int = 0
    lost: int = 0
    first_ready: float | None = None
    _queue: deque[Shard] = field(default_factory=deque)
    _attempts: Counter[int] = field(default_factory=Counter)
    _suspicions: dict[int, Suspicion] = field(default_factory=dict)
    _calls: dict["ObjectRef[Any]", _Member] = field(default_factory=dict)
    _losses_in_a_row: int = 0
    _patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        self._patience = Patience(self.execution.shard_timeout)

    @property
    def live(self) -> int:
        """How many replicas are at work."""
        return sum(member.ready for member in self._calls.values())

    @property
    def running(self) -> int:
        """How many shards are in hand."""
        return sum(member.shard is not None for member in self._calls.values())

    @property
    def queued(self) -> int:
        """How many shards wait, in the queue or behind the one in a replica's hand."""
        behind = sum(member.upcoming is not None for member in self._calls.values())
        return len(self._queue) + behind

    def explain(self, shards: list[Shard]) -> Generator[ShardReport | ShardFailure | None]:
        """Yield a report or a failure for every shard as they end, and None where time passes.

        Leaving the iterator early ends all replicas. Raises ClusterError where for --start-timeout
        seconds no replica is there to work, or replicas are lost over and over, and
        ConfigurationError where the model does not fit into the precision that was asked for.
        """
        self._queue.extend(shards)
        job = ray.put(self.job)
        outstanding = len(shards)
        try:
            for _ in range(min(self.resources.replicas, len(shards))):
                self._start(job)
            self._start_loading()
            last_live = time.monotonic()
            while outstanding:
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=POLL_SECONDS)
                if self.live:
                    last_live = time.monotonic()
                self._end_hung()
                if not done:
                    self._check_alive(last_live)
                    yield None
                for call in done:
                    outcome = self._settle(call, job)
                    if outcome is not None:
                        outstanding -= 1
                        yield outcome
        finally:
            for member in self._calls.values():
                ray.kill(member.actor)
            self._calls.clear()

    def _start(self, job: "ObjectRef[Job]") -> None:
        need = self.resources
        actor: Any = (
            ray.remote(self.replica)
            .options(
                num_cpus=need.replica_cpus,
                num_gpus=need.replica_gpus,
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            .remote(job, need.loader_cpus, need.ahead)
        )
        ready: ObjectRef[Any] = actor.ready.remote()
        self._calls[ready] = _Member(actor)

    def _start_loading(self) -> None:
        """Load nothing, so that loading processes start beside the replicas: both take seconds."""
        nothing = pa.table({"uri": pa.array([], pa.string())})
        need = self.resources
        load: Any = ray.remote(num_cpus=need.loader_cpus, scheduling_strategy="SPREAD")(load_batch)
        for _ in range(need.replicas * need.ahead):
            load.remote(nothing, self.job.reading, self.job.model.preprocessing)

    def _settle(
        self, call: "ObjectRef[Any]", job: "ObjectRef[Job]"
    ) -> ShardReport | ShardFailure | None:
        """Take one call's result, give its replica the next shard, and say what became of it."""
        member = self._calls.pop(call)
        try:
            result: ReplicaInfo | ShardReport | None = ray.get(call)
        except RayActorError as error:
            return self._replace(member, job, member.hung or reason(error))
        except (WorkerCrashedError, OutOfMemoryError) as error:
            failure = self._killed(member.shard, "loading task died", reason(error))
            self._assign(member)
            return failure
        except (*INFRASTRUCTURE, torch.OutOfMemoryError) as error:
            failure = self._retry(member.shard, reason(error))
            self._assign(member)
            return failure
        except PrecisionError as error:
            raise ConfigurationError([reason(error)]) from error
        self._losses_in_a_row = 0
        outcome = self._note(member, result)
        self._assign(member)
        return outcome

    def _note(
        self, member: _Member, result: ReplicaInfo | ShardReport | None
    ) -> ShardReport | ShardFailure | None:
        """Learn from what a replica gave back, which is nothing where a probe did no harm."""
        if isinstance(result, ReplicaInfo):
            self._admit(result)
            member.ready = True
            return None
        if result is not None:
            self._patience.learn(result.shard, time.monotonic() - member.since)
        elif member.shard is not None:
            suspicion = self._suspicions[member.shard.index]
            return self._search_on(suspicion, suspicion.survived())
        return result

    def _admit(self, replica: ReplicaInfo) -> None:
        expected = self.job.run.description["fingerprint_of"]["model"]["weights"]
        if replica.weights_digest != expected:
            raise ClusterError(
                f"the replica on node {replica.node} holds other weights than the run"
            )
        self.replicas.append(replica)
        self.first_ready = self.first_ready or time.monotonic()

    def _assign(self, member: _Member) -> None:
        """Call the replica with its next shard, or end it where there is nothing left."""
        shard = member.upcoming or self._take()
        if shard is None:
            ray.kill(member.actor)
            return
        member.shard, member.upcoming = shard, self._take(steal=False)
        member.since = time.monotonic()
        self._calls[self._call(member, shard)] = member

    def _call(self, member: _Member, shard: Shard) -> "ObjectRef[Any]":
        """Have a replica do what its shard needs next, loading nothing ahead that may kill."""
        actor, upcoming = member.actor, member.upcoming
        suspicion = self._suspicions.get(shard.index)
        if suspicion is not None and suspicion.probe is not None:
            called = actor.probe.remote(suspicion.probe, suspicion.crashed)
        elif shard.index in self.committed:
            called = actor.retry.remote(shard, suspicion.crashed if suspicion else {})
        elif suspicion is not None:
            called = actor.explain_carefully.remote(shard, suspicion.crashed)
        else:
            is_plain = upcoming is not None and not self._is_special(upcoming)
            called = actor.explain.remote(shard, upcoming if is_plain else None)
        return cast("ObjectRef[Any]", called)

    def _is_special(self, shard: Shard) -> bool:
        return shard.index in self._suspicions or shard.index in self.committed

    def _end_hung(self) -> None:
        """End replicas that take far too long for a shard; their calls fail as a lost one's do."""
        for member in self._calls.values():
            if member.shard is None or member.hung is not None:
                continue
            took = time.monotonic() - member.since
            if took > self._patience.seconds(member.shard):
                member.hung = f"hung: {took:.0f} s for shard {member.shard.index}"
                ray.kill(member.actor)

    def _take(self, *, steal: bool = True) -> Shard | None:
        """The next shard of the queue; an idle replica takes one that another holds in reserve."""
        if self._queue:
            return self._queue.popleft()
        reserved = [m for m in self._calls.values() if m.upcoming is not None] if steal else []
        if not reserved:
            return None
        shard, reserved[0].upcoming = reserved[0].upcoming, None
        return shard

    def _replace(self, member: _Member, job: "ObjectRef[Job]", error: str) -> ShardFailure | None:
        """A lost replica may have published its shard or not: creating a part twice is harmless."""
        ray.kill(member.actor)
        self.news.append(f"a replica was lost: {error}")
        self.lost += 1
        self._losses_in_a_row += 1
        if self._losses_in_a_row > MOST_ATTEMPTS * self.resources.replicas:
            raise ClusterError(f"{self._losses_in_a_row} replicas lost in a row; the last: {error}")
        if member.upcoming is not None:
            self._queue.appendleft(member.upcoming)
        by = "replica died" if member.hung is None else "replica hung"
        outcome = self._killed(member.shard, by, error)
        if self._queue or member.shard is None:
            self._start(job)
        return outcome

    def _killed(self, shard: Shard | None, by: str, error: str) -> ShardFailure | None:
        """Search on for the image that kills, or put the shard back without one that was found."""
        if shard is None:
            return None
        suspicion = self._suspicions.setdefault(shard.index, Suspicion(shard))
        if suspicion.probe is None:
            suspicion.killed(by, self._in_hand(shard))
            return self._retry(shard, error)
        return self._search_on(suspicion, suspicion.killed(by, None))

    def _search_on(self, suspicion: Suspicion, convicted: int | None) -> ShardFailure | None:
        """Put a shard under suspicion at the head of the queue, unless too much of it crashes."""
        shard = suspicion.shard
        if convicted is not None:
            row = self.job.row_of(shard, convicted)
            self.news.append(f"row {row} of the manifest {suspicion.crashed[convicted]}")
            self._attempts[shard.index] = 1
        if suspicion.is_hopeless:
            return ShardFailure(shard, f"more than {MOST_CRASHED} of its images crash")
        self._queue.appendleft(shard)
        self.retried += 1
        return None

    def _in_hand(self, shard: Shard) -> Shard | None:
        """The rows that were in hand when the shard killed, if they were noted."""
        try:
            rows = self.job.run.follow_breadcrumb(shard.index)
        except StorageUnavailable:
            return None  # then all of the shard's rows are suspects
        return None if rows is None else Shard(shard.index, rows.start, rows.stop)

    def _retry(self, shard: Shard | None, error: str) -> ShardFailure | None:
        """Put a shard back into the queue, or give it up after its last attempt."""
        if shard is None:
            return None
        self._attempts[shard.index] += 1
        if self._attempts[shard.index] >= MOST_ATTEMPTS:
            return ShardFailure(shard, error)
        self._queue.append(shard)
        self.retried += 1
        return None

    def _check_alive(self, last_live: float) -> None:
        if time.monotonic() - last_live < self.execution.start_timeout:
            return
        raise ClusterError(
            f"0 of {self.resources.replicas} replicas at work for "
            f"{self.execution.start_timeout:g} s; {asked_and_there(self.resources)}"
        )
