"""Ray itself: a connection to it, what the cluster has, and functions that run on all of it."""

import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from jobs.config import ConfigurationError
from jobs.replica_config import Bounds, ReplicaConfig
from storage.locations import StorageUnavailable

# What befalls work through no fault of its own or of this program: it can be tried again.
INFRASTRUCTURE = (
    StorageUnavailable,
    WorkerCrashedError,
    OutOfMemoryError,
    ObjectLostError,
    NodeDiedError,
)
CONNECT_SECONDS = 10.0
# Ray ends processes that are idle for a second, and a loading process, which waits while a batch is
# computed, takes seconds of every core to start anew.
OWN_CLUSTER = {"idle_worker_killing_time_threshold_ms": 600_000}
CORES_OF_A_CPU_REPLICA = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterError(RuntimeError):
    """Ray gives nothing to work with; the run can be resumed when it does."""


@dataclass(frozen=True)
class Resources:
    """What a replica and a loading task ask Ray for. `threads` is torch's, None for Ray's own."""

    device: str
    replicas: int
    replica_cpus: float
    replica_gpus: float
    loader_cpus: float
    ahead: int
    threads: int | None


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray for a while: this process's connection where it has one, which stays, or one of its own.

    Raises ClusterError where Ray is not to be had, or this process is connected to another cluster.
    """
    if ray.is_initialized():
        _check_connected_to(address)
        yield
        return
    try:
        connect(address)
        yield
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    """Connect to a Ray cluster, or start one of this machine's own where no address is given.

    Raises ClusterError where neither can be done.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_reachable(address)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _system_config=None if address else OWN_CLUSTER,
        )
    # Besides these three Ray raises Exception itself, where a node does not start in time.
    except Exception as error:
        where = f"connect to the Ray cluster at {address}" if address else "start Ray"
        raise ClusterError(f"cannot {where}: {error}") from error


def check_reachable(address: str) -> None:
    """Raise ClusterError in seconds where nobody listens at host:port; Ray tries for minutes."""
    if not _is_host_and_port(address):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"cannot connect to the Ray cluster at {address}: {error}") from error


def _is_host_and_port(address: str) -> bool:
    return "://" not in address and address.rpartition(":")[2].isdigit()


def _check_connected_to(address: str | None) -> None:
    """Refuse another cluster than the one that was asked for, where addresses can tell."""
    here = ray.get_runtime_context().gcs_address
    if address is None or not _is_host_and_port(address) or not _is_host_and_port(here):
        return
    if _resolved(address) != _resolved(here):
        raise ClusterError(
            f"this process is connected to the Ray cluster at {here}, and --address asks for "
            f"{address}: call ray.shutdown() first, or leave the address out"
        )


def _resolved(address: str) -> tuple[str, str]:
    """The IP address, one for all that mean this machine, and the port."""
    host, _, port = address.rpartition(":")
    try:
        ip = socket.gethostbyname(host)
    except OSError as error:
        raise ClusterError(f"cannot connect to the Ray cluster at {address}: {error}") from error
    return ray.util.get_node_ip_address() if ip.startswith("127.") else ip, port


def resources(asked: ReplicaConfig) -> Resources:
    """Decide what a replica is: a GPU, or a share of one, where the cluster has one, else cores.

    A CPU replica computes on all of its cores, and the little that decoding takes beside a ViT on
    a CPU is left to the operating system: loading tasks ask for no core of their own there. Raises
    ConfigurationError where a GPU is to be shared and there is none.
    """
    cores_of_nodes = [int(node.get("CPU", 0)) for node in _nodes()]
    gpus = sum(int(node.get("GPU", 0)) for node in _nodes())
    if asked.device == "cuda" or (asked.device == "auto" and gpus > 0):
        # Ray rounds to four digits: so many fit onto one GPU then.
        share = math.floor(1e4 / asked.replicas_per_gpu) / 1e4
        none_yet = Resources("cuda", 1, 0, share, loader_cpus=1, ahead=2, threads=None)
        return grown(none_yet, asked.bounds)
    if asked.replicas_per_gpu > 1:
        raise ConfigurationError(
            [f"--replicas-per-gpu {asked.replicas_per_gpu} needs GPUs; the cluster has none"]
        )
    cpus, largest = sum(cores_of_nodes), max(cores_of_nodes, default=0)
    none_yet = Resources("cpu", 1, 0, 0, loader_cpus=0, ahead=1, threads=None)
    need = grown(none_yet, asked.bounds)
    cores = max(1, min(largest, cpus // need.replicas))
    return replace(need, replica_cpus=min(float(cores), cpus / need.replicas), threads=cores)


def grown(need: Resources, bounds: Bounds) -> Resources:
    """The same, for as many replicas as the cluster has room for by now; never for fewer."""
    nodes = _nodes()
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if need.device == "cuda":
        room = sum(int(node.get("GPU", 0)) for node in nodes) * int(1 / need.replica_gpus)
    else:
        room = sum(max(1, count // CORES_OF_A_CPU_REPLICA) for count in cores if count)
    replicas = bounds.most or max(bounds.least, room, need.replicas)
    ahead = 2 + sum(cores) // replicas if need.device == "cuda" else need.ahead
    return replace(need, replicas=replicas, ahead=ahead)


def _nodes() -> list[Mapping[str, float]]:
    """What each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def asked_and_there(need: Resources) -> str:
    """What a replica asks of a node, and what the nodes have."""
    have = "; ".join(f"{n.get('GPU', 0):g} GPUs and {n.get('CPU', 0):g} CPUs" for n in _nodes())
    return (
        f"each asks one node for {need.replica_gpus:g} GPUs and {need.replica_cpus:g} CPUs; the "
        f"nodes have {have}"
    )


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `map` is, on all CPUs of the cluster: results come in the order of the items.

    Results that wait for their turn are bounded by twice the CPUs. Ray runs again what a lost
    worker or node had in hand, so `function` must bear that; its own errors are raised as they are.
    """
    task: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)
    shared = ray.put(function)
    most = max(2, 2 * int(ray.cluster_resources().get("CPU", 0)))
    calls: deque[ObjectRef[Any]] = deque()
    try:
        for item in items:
            calls.append(task.remote(shared, item))
            if len(calls) == most:
                yield ray.get(calls.popleft())
        while calls:
            yield ray.get(calls.popleft())
    finally:
        for call in calls:
            ray.cancel(call)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


def reason(error: BaseException) -> str:
    """The innermost cause in one line, without the traces of the processes that it came through."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
