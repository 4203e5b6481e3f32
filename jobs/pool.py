"""The driver's side of the replicas: keep them alive, hand out shards, take back reports."""

import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import ray
import torch
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from explainer import PrecisionError
from jobs.cluster import INFRASTRUCTURE, ClusterError, Resources, asked_and_there, grown, reason
from jobs.config import ConfigurationError
from jobs.loader import load_batch
from jobs.member import Member, straggler
from jobs.patience import Patience
from jobs.plan import Shard
from jobs.replica import Explains, Replica, ReplicaInfo
from jobs.replica_config import ReplicaConfig
from jobs.shard_queue import MOST_ATTEMPTS, ShardFailure, ShardQueue
from jobs.worker import Job, ShardReport

POLL_SECONDS = 1.0
GROW_SECONDS = 10.0


@dataclass
class Pool:
    """Replicas that explain shards; a lost one is replaced and its shards go back to the queue.

    Of shards that are `committed` only the failed images are explained, again. `replica` is the
    actor's class; `news` are sentences for the user, `lost` counts replicas that are gone;
    `first_ready` is when the first replica had its model, on the monotonic clock. `resources` grow
    with the cluster. At the end, when nothing waits, a shard that is late is given to a second
    replica too.
    """

    job: Job
    resources: Resources
    execution: ReplicaConfig
    committed: frozenset[int] = frozenset()
    replica: type[Explains] = Replica
    replicas: list[ReplicaInfo] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    lost: int = 0
    first_ready: float | None = None
    _queue: ShardQueue = field(init=False)
    _calls: dict["ObjectRef[Any]", Member] = field(default_factory=dict)
    _idle: list[Member] = field(default_factory=list)
    _losses_in_a_row: int = 0
    _patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        self._patience = Patience(self.execution.shard_timeout)
        self._queue = ShardQueue(self.job, self.news)

    @property
    def live(self) -> int:
        """How many replicas have their model."""
        return sum(member.ready for member in self._members)

    @property
    def running(self) -> int:
        """How many replicas have a shard in hand."""
        return sum(member.shard is not None for member in self._calls.values())

    @property
    def queued(self) -> int:
        """How many shards wait, in the queue or behind the one in a replica's hand."""
        behind = sum(member.upcoming is not None for member in self._calls.values())
        return len(self._queue) + behind

    @property
    def retried(self) -> int:
        """How many shards went back to the queue."""
        return self._queue.retried

    @property
    def _members(self) -> list[Member]:
        return [*self._calls.values(), *self._idle]

    def explain(self, shards: list[Shard]) -> Generator[ShardReport | ShardFailure | None]:
        """Yield a report or a failure for every shard as they end, and None where time passes.

        Leaving the iterator early ends all replicas. Raises ClusterError where for --start-timeout
        seconds too few replicas are there to work, or replicas are lost over and over, and
        ConfigurationError where the model does not fit into the precision that was asked for.
        """
        self._queue.extend(shards)
        job = ray.put(self.job)
        try:
            self._recruit(job)
            self._start_loading()
            enough = looked = time.monotonic()
            while self._queue.undone:
                done = self._done()
                now = time.monotonic()
                enough = now if self.live >= self._least else enough
                self._end_hung()
                if now - looked > GROW_SECONDS:
                    self._grow()
                    looked = now
                if not done:
                    self._check_enough(enough)
                    yield None
                for call in done:
                    outcome = self._settle(call)
                    if outcome is not None:
                        self._queue.settle(outcome.shard)
                        yield outcome
                self._employ_idle()
                self._recruit(job)
        finally:
            for member in self._members:
                self._end(member)
            self._calls.clear()
            self._idle.clear()

    def _done(self) -> "list[ObjectRef[Any]]":
        """All calls that have ended, waiting a while for a first one."""
        done, others = ray.wait(list(self._calls), num_returns=1, timeout=POLL_SECONDS)
        if done and others:
            done += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return done

    def _recruit(self, job: "ObjectRef[Job]") -> None:
        """Ask for replicas, up to as many as are wanted, while shards wait for them."""
        missing = self.resources.replicas - len(self._members)
        for _ in range(min(missing, len(self._queue))):
            self._start(job)

    def _grow(self) -> None:
        """Use what has joined the cluster."""
        before, self.resources = self.resources, grown(self.resources, self.execution.bounds)
        if self.resources.ahead != before.ahead:
            for member in self._members:
                member.actor.load_ahead.remote(self.resources.ahead)

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
        self._calls[ready] = Member(actor)

    def _start_loading(self) -> None:
        """Load nothing, so that loading processes start beside the replicas: both take seconds."""
        nothing = pa.table({"uri": pa.array([], pa.string())})
        need = self.resources
        load: Any = ray.remote(num_cpus=need.loader_cpus, scheduling_strategy="SPREAD")(load_batch)
        for _ in range(need.replicas * need.ahead):
            load.remote(nothing, self.job.reading, self.job.model.preprocessing)

    def _end(self, member: Member) -> None:
        ray.kill(member.actor)

    def _settle(self, call: "ObjectRef[Any]") -> ShardReport | ShardFailure | None:
        """Take one call's result, give its replica the next shard, and say what became of it."""
        member = self._calls.pop(call)
        try:
            result: ReplicaInfo | ShardReport | None = ray.get(call)
        except RayActorError as error:
            return self._lose(member, member.hung or reason(error))
        except (WorkerCrashedError, OutOfMemoryError) as error:
            failure = self._undo(member.shard, reason(error), "loading task died")
            self._assign(member)
            return failure
        except (*INFRASTRUCTURE, torch.OutOfMemoryError) as error:
            failure = self._undo(member.shard, reason(error))
            self._assign(member)
            return failure
        except PrecisionError as error:
            raise ConfigurationError([reason(error)]) from error
        self._losses_in_a_row = 0
        outcome = self._note(member, result)
        self._assign(member)
        return outcome

    def _note(
        self, member: Member, result: ReplicaInfo | ShardReport | None
    ) -> ShardReport | ShardFailure | None:
        """Learn from what a replica gave back, which is nothing where a probe did no harm."""
        if isinstance(result, ReplicaInfo):
            self._admit(result)
            member.ready = True
            return None
        if result is not None:
            took = time.monotonic() - member.since
            self._patience.learn(result.shard, took)
            member.row_seconds = took / result.shard.rows
            return result if self._queue.is_undone(result.shard) else None
        return None if member.shard is None else self._queue.survived(member.shard)

    def _admit(self, replica: ReplicaInfo) -> None:
        expected = self.job.run.description["fingerprint_of"]["model"]["weights"]
        if replica.weights_digest != expected:
            raise ClusterError(
                f"the replica on node {replica.node} holds other weights than the run"
            )
        self.replicas.append(replica)
        self.first_ready = self.first_ready or time.monotonic()

    def _assign(self, member: Member) -> None:
        """Call the replica with its next shard, or have it wait where there is nothing left."""
        shard = member.upcoming or self._take()
        if shard is None:
            member.shard = None
            self._idle.append(member)
            return
        self._give(member, shard, self._queue.take())

    def _give(self, member: Member, shard: Shard, upcoming: Shard | None = None) -> None:
        member.shard, member.upcoming = shard, upcoming
        member.since = time.monotonic()
        self._calls[self._call(member, shard)] = member

    def _employ_idle(self) -> None:
        """Give replicas without work a shard, or a copy of one that is late; end superfluous ones.

        Two replicas that explain the same shard do no harm: the second one's part is discarded.
        """
        waiting, self._idle = self._idle, []
        for member in waiting:
            self._assign(member)
        waiting, self._idle = self._idle, []
        for member in waiting:
            slow = straggler(self._alone_on_a_shard(), member, time.monotonic())
            if slow is not None and slow.shard is not None:
                late = f"shard {slow.shard.index} takes long"
                self.news.append(f"{late}: a second replica explains it too")
                self._give(member, slow.shard)
            elif len(self._idle) < self.running:
                self._idle.append(member)
            else:
                self._end(member)

    def _alone_on_a_shard(self) -> list[Member]:
        """Who has a shard in hand that nobody else has, and that never killed."""
        holders = Counter(m.shard.index for m in self._calls.values() if m.shard is not None)
        return [
            m
            for m in self._calls.values()
            if m.shard and holders[m.shard.index] == 1 and not self._is_special(m.shard)
        ]

    def _call(self, member: Member, shard: Shard) -> "ObjectRef[Any]":
        """Have a replica do what its shard needs next, loading nothing ahead that may kill."""
        actor, upcoming = member.actor, member.upcoming
        suspicion = self._queue.suspicion(shard)
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
        return self._queue.suspicion(shard) is not None or shard.index in self.committed

    def _end_hung(self) -> None:
        """End replicas that take far too long for a shard; their calls fail as a lost one's do."""
        for member in self._calls.values():
            if member.shard is None or member.hung is not None:
                continue
            took = time.monotonic() - member.since
            if took > self._patience.seconds(member.shard):
                member.hung = f"hung: {took:.0f} s for shard {member.shard.index}"
                self._end(member)

    def _take(self) -> Shard | None:
        """The next shard of the queue, or one that another replica holds in reserve."""
        if (shard := self._queue.take()) is not None:
            return shard
        reserved = [m for m in self._calls.values() if m.upcoming is not None]
        if not reserved:
            return None
        shard, reserved[0].upcoming = reserved[0].upcoming, None
        return shard

    def _lose(self, member: Member, error: str) -> ShardFailure | None:
        """A lost replica may have published its shard or not: creating a part twice is harmless."""
        self._end(member)
        self.news.append(f"a replica was lost: {error}")
        self.lost += 1
        self._losses_in_a_row += 1
        if self._losses_in_a_row > MOST_ATTEMPTS * self.resources.replicas:
            raise ClusterError(f"{self._losses_in_a_row} replicas lost in a row; the last: {error}")
        if member.upcoming is not None:
            self._queue.put_first(member.upcoming)
        by = "replica died" if member.hung is None else "replica hung"
        return self._undo(member.shard, error, by)

    def _undo(
        self, shard: Shard | None, error: str, killed: str | None = None
    ) -> ShardFailure | None:
        """A shard was begun and not done: it is tried again, unless another replica has it too."""
        in_hand = [member.shard for member in self._calls.values()]
        if shard is None or shard in in_hand or not self._queue.is_undone(shard):
            return None
        if killed is not None:
            return self._queue.killed(shard, killed, error)
        return self._queue.retry(shard, error)

    @property
    def _least(self) -> int:
        """How many replicas have to be at work, of those that there are shards for."""
        return min(self.execution.bounds.least, self._queue.undone)

    def _check_enough(self, enough: float) -> None:
        """Raise ClusterError where the last time with enough replicas is too long ago."""
        if time.monotonic() - enough < self.execution.start_timeout:
            return
        fewer = "" if self._least <= 1 else f", which is fewer than {self._least},"
        raise ClusterError(
            f"{self.live} of {self.resources.replicas} replicas at work{fewer} for "
            f"{self.execution.start_timeout:g} s; {asked_and_there(self.resources)}"
        )
