"""What 500 replicas cost the driver, with replicas that sleep instead of explaining.

    python benchmarks/sleeping.py [--replicas 500] [--seconds 30] [--minutes 3] [--check]

The driver's own loop (jobs.explain.follow: handing out shards, counting, metrics, the progress
line) over a real Ray cluster of this machine. 500 processes do not fit here, so a few actors stand
for all: each runs its share of the calls at once, which sleep between half and one and a half times
S seconds and report. To the driver these are as many calls and object references as of so many
replicas; that many processes, connections and starts are not simulated. Printed: its share of one
core, how late it takes reports once all are at work, and its memory after a fifth of the shards and
at the end.
"""

import argparse
import asyncio
import io
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray import ObjectRef

    from jobs.plan import Shard
    from jobs.pool import Pool
    from jobs.replica import ReplicaInfo
    from jobs.worker import Job, ShardReport

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks.machine import describe
from jobs.cli import set_ray_environment

HOSTS = 4
ROWS = 1024
MOST_SHARE, MOST_LATE_SECONDS, MOST_GROWN_MIB = 0.5, 1.0, 32.0
out = Console(soft_wrap=True, highlight=False)


@dataclass
class Measured:
    """Of each report: how late the driver took it; of the driver: seconds and memory."""

    late: list[float] = field(default_factory=list)
    reports: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    early_mib: float = 0.0
    end_mib: float = 0.0


class SleepingHost:
    """Stands for many replicas."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def ready(self) -> "ReplicaInfo":
        """Return what a replica with the right weights does."""
        from jobs.replica import ReplicaInfo

        return ReplicaInfo("node", [0], "cpu", "weights")

    async def load_ahead(self, batches: int) -> None:
        """Nothing is loaded."""

    async def explain(self, shard: "Shard", upcoming: "Shard | None") -> "ShardReport":
        """Sleep, and report images and when the report was ready, as no replica does."""
        from jobs.worker import ShardReport

        await asyncio.sleep(self.seconds * random.Random(shard.index).uniform(0.5, 1.5))
        return ShardReport(shard, True, {"ok": shard.rows}, {"compute": 1.0, "at": time.time()})


def main() -> None:
    """Have the replicas work, print what the driver did, and with --check hold the limits."""
    options = _options()
    out.print(describe("ray"))
    with TemporaryDirectory(prefix="saliency-sleeping-") as folder:
        measured = _run(options, Path(folder))
    share, each = measured.cpu / measured.wall, 1000 * measured.cpu / measured.reports
    late = sorted(measured.late)
    p99, grown = late[int(0.99 * len(late))], measured.end_mib - measured.early_mib
    out.print(
        f"{options.replicas} replicas, {measured.reports} reports in {measured.wall:.0f} s "
        f"({measured.reports / measured.wall:.1f} a second)\n"
        f"driver: {share:.2f} of one core, {each:.1f} ms a report\n"
        f"a report is taken after {1000 * statistics.median(late):.0f} ms "
        f"(99%: {1000 * p99:.0f} ms)\n"
        f"memory: {measured.early_mib:.0f} MiB after a fifth of them, {grown:+.1f} MiB at the end"
    )
    if options.check and (share > MOST_SHARE or p99 > MOST_LATE_SECONDS or grown > MOST_GROWN_MIB):
        sys.exit(
            f"at most {MOST_SHARE:g} of a core, {MOST_LATE_SECONDS:g} s, {MOST_GROWN_MIB:g} MiB"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What many replicas cost the driver.")
    parser.add_argument("--replicas", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0, help="of sleep a shard, on average")
    parser.add_argument("--minutes", type=float, default=3.0, help="of work, about")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def _run(options: argparse.Namespace, folder: Path) -> Measured:
    set_ray_environment(None)  # before Ray is imported
    os.environ["PYTHONPATH"] = sys.path[0]
    import ray

    from jobs.cluster import connected
    from jobs.plan import Shard

    count = int(60 * options.minutes / options.seconds * options.replicas)
    shards = [Shard(i, i * ROWS, (i + 1) * ROWS) for i in range(count)]
    with connected(None):
        kind: Any = ray.remote(SleepingHost).options(num_cpus=0, max_concurrency=options.replicas)
        hosts = [kind.remote(options.seconds) for _ in range(HOSTS)]
        return _drive(options, shards, hosts, folder)


def _drive(
    options: argparse.Namespace, shards: "list[Shard]", hosts: list[Any], folder: Path
) -> Measured:
    """The driver's loop over all shards."""
    from jobs.explain import follow
    from jobs.progress import RunProgress
    from jobs.summary import Attempt
    from storage.lease import Lease
    from storage.locations import Location

    pool, measured = _pool(options.replicas, hosts, folder), Measured(reports=len(shards))
    rows = sum(shard.rows for shard in shards)
    console = Console(file=io.StringIO())
    with Lease(Location(str(folder / "run"))).held(False, out.print) as lease:
        attempt = Attempt(lease)
        with RunProgress(console, rows, 0) as progress:
            began, cpu, at = time.time(), time.process_time(), 0.0
            for _ in follow(pool, shards, attempt, progress):
                now, at_all = time.time(), attempt.seconds.get("at", 0.0)
                if at_all > at and now - began > options.seconds:
                    measured.late.append(now - (at_all - at))
                at = at_all
                if not measured.early_mib and len(measured.late) > len(shards) / 5:
                    measured.early_mib = _mib()
            measured.wall, measured.cpu = time.time() - began, time.process_time() - cpu
    measured.end_mib = _mib()
    return measured


def _pool(replicas: int, hosts: list[Any], folder: Path) -> "Pool":
    """A pool that asks a few actors for what many would do, and else is the job's own."""
    from jobs.cluster import Resources
    from jobs.member import Member
    from jobs.pool import Pool
    from jobs.replica_config import ReplicaConfig

    class ManyOnFew(Pool):
        def _start(self, job: "ObjectRef[Job]") -> None:
            host = hosts[len(self._members) % len(hosts)]
            self._calls[host.ready.remote()] = Member(host)

        def _start_loading(self) -> None:
            """Nothing is loaded."""

        def _end(self, member: Member) -> None:
            """Others live in the same actor."""

    need = Resources("cuda", replicas, 0, 1, loader_cpus=1, ahead=2, threads=None)
    return ManyOnFew(_job(folder), need, ReplicaConfig(replicas=replicas))


def _job(folder: Path) -> "Job":
    """A run's job without a model: the driver looks at the run alone."""
    from jobs.worker import Job
    from storage.locations import Location
    from storage.runs import open_or_create

    description = {"fingerprint_of": {"model": {"weights": "weights"}}}
    run = open_or_create(Location(str(folder / "run")), description)
    empty: dict[str, Any] = dict.fromkeys(field.name for field in fields(Job))
    return Job(**{**empty, "run": run})


def _mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
