"""Metrics of runs, through Ray to Prometheus: each named once here, and what it counts.

Ray exports them on every node's metrics port, with `ray_` before and, of counters, `_total` behind
the name, and adds tags of its own (NodeAddress, WorkerId, SessionName, ...).
To tell one costs microseconds.
"""

from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

PREFIX = "saliency_"
BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]

COUNTERS = {
    "images": (("run", "status"), "images whose part is written, by what became of them"),
    "stage_seconds": (("run", "stage"), "seconds of replicas and loading tasks, by stage"),
    "shards_retried": (("run",), "shards that went back to the queue"),
    "replicas_lost": (("run",), "replicas that died or were ended because they hung"),
    "replica_images": (("run", "replica"), "images whose part a replica has written"),
    "replica_stage_seconds": (
        ("run", "replica", "stage"),
        "seconds of a replica and its loading tasks, by stage",
    ),
}
GAUGES = {
    "shards": (("run", "state"), "shards of this start: queued, running, done, undone"),
    "replicas": (("run", "state"), "replicas: wanted, ready"),
    "images_per_second": (("run",), "images a second since the first replica was ready"),
}
HISTOGRAMS = {
    "batch_images": (("run", "replica"), "images of a batch as it was loaded"),
}


@cache
def _counter(name: str) -> Counter:
    tags, meaning = COUNTERS[name]
    return Counter(PREFIX + name, meaning, tags)


@cache
def _gauge(name: str) -> Gauge:
    tags, meaning = GAUGES[name]
    return Gauge(PREFIX + name, meaning, tags)


@cache
def _histogram(name: str) -> Histogram:
    tags, meaning = HISTOGRAMS[name]
    return Histogram(PREFIX + name, meaning, BATCH_SIZES, tags)


def add(name: str, amount: float, **tags: str) -> None:
    """Add to a counter of COUNTERS; of 0, which Ray refuses, nothing is told."""
    if amount > 0:
        _counter(name).inc(amount, tags)


def put(name: str, value: float, **tags: str) -> None:
    """Set a gauge of GAUGES."""
    _gauge(name).set(value, tags)


def observe(name: str, value: float, **tags: str) -> None:
    """Note one value of a histogram of HISTOGRAMS, above 0."""
    if value > 0:
        _histogram(name).observe(value, tags)
