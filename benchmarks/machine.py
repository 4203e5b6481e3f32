"""On what a benchmark ran: the lines that stand above its table."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path


def describe(*packages: str, device: str = "cpu") -> str:
    """Date, GPU if one is used, processor, cores, load, memory, and versions, in two lines."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    gpu = _gpu() if device == "cuda" else ""
    return (
        f"{date.today()}, {gpu}{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"load {os.getloadavg()[0]:.1f}\n{versions}"
    )


def _gpu() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
