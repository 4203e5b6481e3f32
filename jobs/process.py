"""What a replica sets for the whole of its process."""

import ctypes

import torch

# Parameters of glibc's mallopt, from its malloc.h. Tensors inside an explanation have about 8 MiB;
# what is larger than 32 is given back, so that nothing large is left between small things.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_BYTES = 2**28, 2**25


def set_up(device: str, threads: int | None) -> None:
    """Compute with `threads`; on CPUs, keep up to 256 MiB of freed memory for the next batch.

    glibc gives most of it back to the system, and each batch waits for new pages
    (docs/performance.md). Another C library is left as it is.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device == "cpu" and mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
