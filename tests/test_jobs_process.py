"""A replica's process computes with its threads and, on CPUs, keeps memory for its tensors."""

import json
import platform
import subprocess
import sys

import pytest

# Which of two tensors lie in the heap, where what is freed stays for what comes next.
TOLD = """
import json, sys
from pathlib import Path
import torch
from jobs.process import set_up

def in_heap(tensor):
    maps = Path("/proc/self/maps").read_text().splitlines()
    (heap,) = [line for line in maps if "[heap]" in line]
    start, stop = (int(each, 16) for each in heap.split()[0].split("-"))
    return start <= tensor.data_ptr() < stop

set_up(sys.argv[1], 1)
found = [in_heap(torch.ones(megabytes * 2**18)) for megabytes in (24, 40)]
print(json.dumps([torch.get_num_threads(), *found]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is left alone")
@pytest.mark.parametrize(("device", "is_kept"), [("cpu", True), ("cuda", False)])
def test_on_cpus_freed_memory_stays_for_the_next_batch_but_no_huge_piece(device, is_kept):
    command = [sys.executable, "-c", TOLD, device]
    told = subprocess.run(command, check=True, capture_output=True)
    assert json.loads(told.stdout) == [1, is_kept, False]
