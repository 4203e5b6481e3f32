"""Ray itself: a connection to it, what the cluster has, and functions that run on all of it."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

from jobs.config import ExecutionConfig
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


def resources(execution: ExecutionConfig) -> Resources:
    """Decide what a replica is: a GPU where the cluster has one, else some cores of one node.

    A CPU replica computes on all of its cores, and the little that decoding takes beside a ViT on
    a CPU is left to the operating system: loading tasks ask for no core of their own there.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores_of_nodes = [int(node.get("CPU", 0)) for node in nodes]
    cpus, largest = sum(cores_of_nodes), max(cores_of_nodes, default=0)
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if execution.device == "cuda" or (execution.device == "auto" and gpus > 0):
        replicas = execution.replicas or max(1, gpus)
        ahead = 2 + cpus // replicas
        return Resources("cuda", replicas, 0, 1, loader_cpus=1, ahead=ahead, threads=None)
    wanted = sum(max(1, cores // CORES_OF_A_CPU_REPLICA) for cores in cores_of_nodes if cores)
    replicas = execution.replicas or max(1, wanted)
    cores = max(1, min(largest, cpus // replicas))
    share = min(float(cores), cpus / replicas)
    return Resources("cpu", replicas, share, 0, loader_cpus=0, ahead=1, threads=cores)


def asked_and_there(need: Resources) -> str:
    """What a replica asks of a node, and what the nodes have."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have = "; ".join(f"{n.get('GPU', 0):g} GPUs and {n.get('CPU', 0):g} CPUs" for n in nodes)
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
