"""What a run's rate was limited by, in words, from where its replicas spent their time."""

from collections.abc import Mapping

# Less of a replica's time is start effects: first batches, lazily loaded kernels, cold caches.
LEAST_SECONDS = 10.0
# A replica that is fed in time waits for next to nothing.
STARVED = 0.1
# One loading process feeds fewer replicas than this: where it worked a smaller share of what
# replicas waited, it was not the loading that they waited for.
MOST_FED = 4


def bottleneck(seconds: Mapping[str, float], replicas: int, device: str) -> str:
    """Name what limited the rate, and what would raise it.

    `seconds`: `wait` and `compute`, summed over replicas, one after the other in each, `write`,
    which with a GPU runs beside them, and `fetch` and `decode`, summed over loading tasks. Where
    writing takes longer than all else, it holds that up. Else a replica that waits is starved by
    the loading, whatever it computes the rest of the time; one that does not is limited by what it
    computes.
    """
    fetch, decode = seconds["fetch"], seconds["decode"]
    wait, compute, write = seconds["wait"], seconds["compute"], seconds["write"]
    busy = wait + compute
    if max(busy, write) < LEAST_SECONDS * replicas:
        return "too short to tell what limits it"
    if write > busy:
        return "limited by writing: add replicas, or write to a faster store"
    if wait > STARVED * busy:
        return f"limited by {_loading(fetch, decode, wait)}"
    more = "replicas or GPUs" if device == "cuda" else "CPUs, or use a GPU"
    return f"limited by the model: add {more}"


def _loading(fetch: float, decode: float, wait: float) -> str:
    if fetch + decode < wait / MOST_FED:
        return "handing batches over, not by loading them: give larger batches (--batch-size)"
    if fetch > decode:
        return "fetching: move the images nearer, or add CPUs to fetch more at once"
    return "decoding: add CPUs"
