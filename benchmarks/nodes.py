"""Ray clusters of several nodes on this machine, whose nodes can be lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.weed import free_ports
from jobs.cluster import OWN_CLUSTER

# As Ray's own, but quick to give up: a head node that is lost, and a node that refuses connections.
QUICK = {
    **OWN_CLUSTER,
    "gcs_rpc_server_reconnect_timeout_s": 10,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
NODE: dict[str, Any] = {"object_store_memory": 100 * 2**20}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A cluster with a head that works not at all, and nodes with a replica each."""
    from ray.cluster_utils import Cluster

    (port,) = free_ports(1)
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "dashboard_port": port}
    head["_system_config"] = QUICK
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **NODE)
        yield cluster
    finally:
        lose(cluster)


def lose(cluster: Any) -> None:  # noqa: ANN401 - Ray's own
    """Lose every node at once, the head among them."""
    for node in [*cluster.worker_nodes, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
