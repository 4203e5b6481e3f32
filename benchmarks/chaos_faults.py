"""What can happen in a round, drawn from the round's own random numbers, and doing it."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos_stage import Stage
from benchmarks.faulty_store import Fault

# Part of 19 after which it happens, at most: later ones would often find the run finished.
LATEST = 14
STORAGE = ("slow_down", "reset", "reset_after", "stall", "expired", "lagging", "refuse_writes")
KINDS = (
    "replica", "loader", "node", "cluster", "server",
    "driver killed", "driver terminated", "second driver", "storm", *STORAGE,
)  # fmt: skip
# A second driver must find the first one alive, so nothing else happens to it.
ALONE = ("second driver",)
SHARE_OF_PAIRS = 0.35


@dataclass(frozen=True)
class Act:
    """A fault of a `kind` once `after` parts are there, for so many `seconds` where it lasts."""

    kind: str
    after: int
    seconds: float = 0.0
    number: int = 0
    faults: tuple[Fault, ...] = ()


@dataclass
class Scene:
    """The round that an act happens in: its driver, and when the store's faults end."""

    stage: Stage
    driver: Any
    start_second: Callable[[], None]
    faults_until: float = 0.0
    refusing: bool = field(default=False)  # whether the faults are a refusal, which may exit 2
    told_to_end: set[int] = field(default_factory=set)


def draw(seed: int, number: int) -> list[Act]:
    """The acts of a round, in their order; the same for the same numbers."""
    chance = random.Random(f"{seed}-{number}")
    kinds = [chance.choice(KINDS)]
    if kinds[0] not in ALONE and chance.random() < SHARE_OF_PAIRS:
        kinds.append(chance.choice([k for k in KINDS if k not in (*ALONE, kinds[0])]))
    acts = [_act(chance, kind) for kind in kinds]
    return sorted(acts, key=lambda act: act.after)


def perform(act: Act, scene: Scene) -> None:
    """Do it; what needs a driver that is alive does nothing to one that has ended."""
    stage, driver = scene.stage, scene.driver
    if act.kind == "replica":
        _kill(stage.processes("ray::Replica"), act.number)
    elif act.kind == "loader":
        _kill(stage.processes("ray::load_batch", "ray::IDLE"), act.number)
    elif act.kind == "node":
        stage.lose_node(act.number)
    elif act.kind == "cluster":
        stage.end_cluster()
        stage.start_cluster()
    elif act.kind == "server":
        stage.server.kill()
        time.sleep(act.seconds)
        stage.server.start()
    elif act.kind == "second driver":
        scene.start_second()
    elif act.kind in ("driver killed", "driver terminated"):
        scene.told_to_end.add(driver.pid)
        number = signal.SIGKILL if act.kind == "driver killed" else signal.SIGTERM
        with suppress(ProcessLookupError):
            os.kill(driver.pid, number)
    else:
        stage.store.inject(*act.faults)
        scene.faults_until = time.monotonic() + act.seconds
        scene.refusing = any(f.kind in ("expired", "refuse_writes") for f in act.faults)


def _act(chance: random.Random, kind: str) -> Act:
    after, number = chance.randint(0, LATEST), chance.randrange(1000)
    if kind == "storm":
        some = chance.sample(("slow_down", "reset", "reset_after", "stall", "lagging"), 3)
        faults = tuple(_fault(chance, each) for each in some)
        return Act(kind, after, chance.uniform(3, 20), number, faults)
    if kind in STORAGE:
        return Act(kind, after, chance.uniform(3, 20), number, (_fault(chance, kind),))
    return Act(kind, after, chance.uniform(0, 4), number)


def _fault(chance: random.Random, kind: str) -> Fault:
    if kind == "stall":
        return Fault("stall", rate=chance.uniform(0.02, 0.1), seconds=10.0)
    if kind == "lagging":
        return Fault("lagging", seconds=chance.uniform(1, 30))
    if kind == "expired":
        return Fault("expired")
    if kind == "refuse_writes":
        return Fault("refuse_writes")
    rate = chance.choice([0.05, 0.2, 0.5, 1.0])
    if kind == "slow_down":
        return Fault("slow_down", rate)
    return Fault("reset" if kind == "reset" else "reset_after", rate)


def _kill(processes: list[int], number: int) -> None:
    if processes:
        with suppress(ProcessLookupError):
            os.kill(processes[number % len(processes)], signal.SIGKILL)
