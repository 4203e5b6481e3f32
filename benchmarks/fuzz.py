"""Damaged images, odd lists and hostile texts against the readers, as many as are asked for.

    python benchmarks/fuzz.py --cases 20000 --seed 0 [--only images,tar] [--out DIR]

Each target (benchmarks/fuzz_properties.py) has a process of its own that draws cases with
hypothesis. A case fails where its property raises, where it takes more than --seconds or more than
--gibibytes of memory at the peak, or where it ends the process. The failing input, shrunk where
that is possible, is written to DIR, and the exit code is 1.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# In place of this script's folder, whose explainer.py would hide the package.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypothesis import HealthCheck, given, seed, settings
from rich.console import Console

from benchmarks.fuzz_properties import TARGETS
from benchmarks.machine import describe

CASES_OF_A_PROCESS = 2500
WARM = 200  # cases after which a process should not grow any more
out = Console(soft_wrap=True, highlight=False)


@dataclass
class Tally:
    """What a target's cases came to; seconds and bytes are those of the worst case.

    `grown` are the bytes that the process had more after its last case than after the WARM first.
    """

    cases: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    peak: int = 0
    grown: int = 0
    error: str | None = None

    def add(self, other: "Tally") -> None:
        """Take the cases of another process in."""
        self.cases += other.cases
        self.verdicts = dict(Counter(self.verdicts) + Counter(other.verdicts))
        self.seconds = max(self.seconds, other.seconds)
        self.peak = max(self.peak, other.peak)
        self.grown = max(self.grown, other.grown)
        self.error = self.error or other.error


@dataclass(frozen=True)
class Limits:
    """Of one case."""

    seconds: float
    bytes: int


def main() -> None:
    """Run the targets one after the other and print a table; exit 1 where a property failed."""
    asked = _options()
    limits = Limits(asked.seconds, int(asked.gibibytes * 2**30))
    out.print(describe("hypothesis", "pillow", "pyarrow", "duckdb"))
    out.print(
        f"\n{'target':10s} {'cases':>6s} {'slowest':>8s} {'peak':>9s} {'grown':>8s}  verdicts"
    )
    failed = False
    for name in asked.only.split(","):
        tally = _target(
            name, round(asked.cases * TARGETS[name].share), asked.seed, limits, asked.out
        )
        failed |= tally.error is not None
        _tell(name, tally)
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz the image decoder and the list readers.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--gibibytes", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    return parser.parse_args()


def _tell(name: str, tally: Tally) -> None:
    verdicts = ", ".join(f"{k} {n}" for k, n in sorted(tally.verdicts.items(), key=lambda v: -v[1]))
    out.print(
        f"{name:10s} {tally.cases:6d} {tally.seconds:6.2f} s {tally.peak / 2**20:5.0f} MiB "
        f"{tally.grown / 2**20:4.0f} MiB  {verdicts}"
    )
    if tally.error:
        out.print(f"FAILED {name}: {tally.error}", style="red", markup=False)


def _target(name: str, cases: int, number: int, limits: Limits, failures: Path) -> Tally:
    """All cases of a target, in as many processes as they need, up to the first failure."""
    whole = Tally()
    while whole.cases < cases and whole.error is None:
        some = min(CASES_OF_A_PROCESS, cases - whole.cases)
        with TemporaryDirectory() as folder:
            part = _watched(name, some, number, limits, Path(folder))
            if part.error:
                failures.mkdir(exist_ok=True)
                case = failures / f"{name}-{number}.txt"
                case.write_bytes((Path(folder) / "case").read_bytes())
                part.error += f"\nthe input is in {case}"
        whole.add(part)
        number += 1_000_003
        if not part.cases:
            break
    return whole


def _watched(name: str, cases: int, number: int, limits: Limits, folder: Path) -> Tally:
    """Run cases in a process that is killed where one takes too long or too much memory."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_draw, args=(name, cases, number, limits, folder))
    process.start()
    case, reason = folder / "case", None
    while process.is_alive() and reason is None:
        process.join(0.2)
        reason = _overrun(process.pid or 0, case, limits)
    if reason:
        process.kill()
    process.join()
    tally = folder / "tally"
    result = Tally(**json.loads(tally.read_text())) if tally.exists() else Tally()
    if not tally.exists():
        result.error = reason or f"the process ended with exit code {process.exitcode}"
    return result


def _overrun(pid: int, case: Path, limits: Limits) -> str | None:
    """What the case that is under way takes too much of; a GiB more is for what is imported."""
    try:
        seconds = time.time() - case.stat().st_mtime
        resident = _status(pid, "VmRSS")
    except (OSError, ValueError):  # not begun, or over
        return None
    if seconds > 2 * limits.seconds:
        return f"a case went on for {seconds:.0f} s"
    return f"{resident} bytes resident" if resident > limits.bytes + 2**30 else None


def _draw(name: str, cases: int, number: int, limits: Limits, folder: Path) -> None:
    """A process's work: draw cases, keep the one under way in `case`, and write `tally`."""
    import torch

    torch.set_num_threads(1)
    stderr = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 2)  # what libtiff says of each damaged file
    target, tally, verdicts = TARGETS[name], Tally(), Counter[str]()
    resident = []

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(target.inputs())
    def run(drawn: Any) -> None:  # noqa: ANN401 - each target has inputs of its own
        (folder / "case").write_text(repr(drawn))
        before, started = _begin(), time.perf_counter()
        verdicts[target.property(drawn)] += 1
        seconds, peak = time.perf_counter() - started, _status(os.getpid(), "VmHWM") - before
        tally.cases += 1
        tally.seconds, tally.peak = max(tally.seconds, seconds), max(tally.peak, peak)
        if tally.cases in (min(WARM, cases), cases):
            resident.append(_status(os.getpid(), "VmRSS"))
        assert seconds < limits.seconds, f"a case took {seconds:.1f} s"
        assert peak < limits.bytes, f"a case took {peak} bytes"

    try:
        run()
    except Exception:  # noqa: BLE001 - whatever a property lets out is what is looked for
        tally.error = traceback.format_exc(limit=-4)
    tally.grown = resident[-1] - resident[0] if resident else 0
    tally.verdicts = dict(verdicts)
    (folder / "tally").write_text(json.dumps(asdict(tally)))


def _begin() -> int:
    """Set this process's peak of memory back, and tell what it has."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status(os.getpid(), "VmRSS")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no {name}: this benchmark needs Linux")


if __name__ == "__main__":
    main()
