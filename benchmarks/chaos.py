"""Random faults against runs on a real Ray cluster and a real S3 server; nothing may be lost.

    python benchmarks/chaos.py --rounds N --log FILE [--seed S] [--only K] [--report]

Each round starts the job (300 images in 19 shards, one replica or, each fourth round, two; two Ray
nodes; images and run in S3, through a proxy), lets one or two faults happen to it, and starts the
same command again until it exits 0. The run must then hold what an undisturbed run holds: every row
once and equal, maps bit for bit, no torn and no other object, and `saliency verify` must agree.
What happens follows from the seed and the round's number alone; when exactly, from the machine too.

The log has a line of JSON a round. Started again with the same log, N more rounds follow the last
one of that seed. A round that fails is told with its seed, its objects and logs are kept beside the
log, and the next one begins. --only plays the one round K again; --report prints the log as a
table.
"""

import argparse
import json
import multiprocessing.connection
import os
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

# In place of this script's folder, whose explainer.py would hide the package in Ray's processes.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTHONPATH"] = sys.path[0]
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster listens on this machine only
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# How long Ray keeps a driver whose cluster is gone; by default a minute, at a core's full cost.
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"  # noqa: SIM112 - Ray's own name

from rich.console import Console

from benchmarks.chaos_compare import Objects, compare
from benchmarks.chaos_faults import Act, Scene, draw, perform
from benchmarks.chaos_report import report
from benchmarks.chaos_stage import Stage

MOST_STARTS = 16  # a fault of the store may outlast many that end at once
RESTART_SECONDS = 1.0
MOST_REPLICAS = 2
MOST_SECONDS = 300.0  # that one start of a driver may take
POLL_SECONDS = 0.1
HELD, TERMINATED = 5, 143
out = Console(soft_wrap=True, highlight=False)


class Round:
    """One run that is disturbed; `codes` are those of its drivers, `problems` what may not be."""

    def __init__(self, stage: Stage, number: int, name: str, acts: list[Act], log: Path) -> None:
        self.stage, self.name, self.log = stage, name, log
        self.replicas = MOST_REPLICAS if number % 4 == 0 else 1
        self.left = list(acts)
        self.done: list[str] = []
        self.codes: list[int] = []
        self.problems: list[str] = []
        self.second: ForkServerProcess | None = None
        self.scene = Scene(stage, None, self._start_second)

    def play(self) -> None:
        """Start the driver until it exits 0, while the acts happen."""
        while len(self.codes) < MOST_STARTS:
            self.scene.driver = self.stage.drive(self.name, self.log, self.replicas)
            refused = self._watch()
            self._judge(self.scene.driver.exitcode, refused)
            if self.codes[-1] == 0:
                break
            if self.codes[-1] > 0:  # a killed driver is started at once
                time.sleep(RESTART_SECONDS)
        else:
            self.problems.append(f"not complete after {MOST_STARTS} starts")
        self.stage.store.inject()
        if self.second is not None:
            self.second.join()
            self._watch_second()

    def _watch(self) -> bool:
        """Wait until the driver ends; whether the store refused it meanwhile."""
        driver, refused = self.scene.driver, False
        until = time.monotonic() + MOST_SECONDS
        while driver.exitcode is None:
            if self.left and self.stage.parts(self.name) >= self.left[0].after:
                act = self.left.pop(0)
                self.done.append(act.kind)
                perform(act, self.scene)
            if self.scene.faults_until and time.monotonic() > self.scene.faults_until:
                self.stage.store.inject()
                self.scene.faults_until = 0.0
            refused |= bool(self.scene.faults_until) and self.scene.refusing
            self._watch_second()
            if time.monotonic() > until:
                self.problems.append(f"a driver hung for {MOST_SECONDS:g} s")
                driver.kill()
            multiprocessing.connection.wait([driver.sentinel], timeout=POLL_SECONDS)
        return refused

    def _judge(self, code: int, refused: bool) -> None:
        self.codes.append(code)
        allowed = {0, 1} | ({2} if refused else set())
        if self.scene.driver.pid in self.scene.told_to_end:
            allowed |= {-9, TERMINATED, -15}
        if code not in allowed:
            self.problems.append(f"a driver exited with {code}")

    def _start_second(self) -> None:
        self.second = self.stage.drive(self.name, self.log, self.replicas)

    def _watch_second(self) -> None:
        """A second driver ends with 5 while the first is alive, and may find the run finished."""
        second = self.second
        if second is None or second.exitcode is None:
            return
        self.codes.append(second.exitcode)
        self.second = None
        is_late = self.scene.driver.exitcode is not None
        if second.exitcode != HELD and not (is_late and second.exitcode == 0):
            self.problems.append(f"a second driver exited with {second.exitcode}")


def main() -> None:
    """Play rounds and write the log, or report it; exits 1 where a round failed."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stage is cleared
    log = Path(options.log)
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if options.report:
        print(report(records))  # noqa: T201 - Markdown for a file, as it is
        return
    played = [record["round"] for record in records if record["seed"] == options.seed]
    first = max(played, default=0) + 1
    numbers = range(first, first + options.rounds) if options.only is None else [options.only]
    failed = 0
    with (
        TemporaryDirectory(prefix="saliency-chaos-", ignore_cleanup_errors=True) as folder,
        Stage(Path(folder), options.seed) as stage,
    ):
        reference = undisturbed(stage, Path(folder) / "undisturbed.log")
        for number in numbers:
            record = play(stage, reference, options.seed, number, log)
            with log.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            failed += bool(record["problems"])
    sys.exit(1 if failed else 0)


def undisturbed(stage: Stage, log: Path) -> Objects:
    """What every run must be equal to."""
    driver = stage.drive("undisturbed", log, MOST_REPLICAS)
    driver.join()
    if driver.exitcode != 0:
        raise RuntimeError(f"the undisturbed run exited with {driver.exitcode}: {log.read_text()}")
    return Objects.read(stage.place("undisturbed"))


def play(stage: Stage, reference: Objects, seed: int, number: int, log: Path) -> dict[str, object]:
    """One round, as its line in the log says."""
    started, acts = time.monotonic(), draw(seed, number)
    stage.store.requests.clear()
    name, told = f"runs/{seed}-{number}", stage.folder / f"{seed}-{number}.log"
    played = Round(stage, number, name, acts, told)
    played.play()
    compared = compare(reference, stage.place(name), stage.storage)
    differs = [f"{n} rows {what}" for what, n in asdict(compared).items() if n and what in ROWS]
    problems = [*played.problems, *compared.problems, *differs]
    record = {
        "seed": seed,
        "round": number,
        "kinds": [act.kind for act in acts],
        "happened": played.done,
        "acts": [asdict(act) for act in acts],
        "codes": played.codes,
        "met": dict(stage.store.met),
        "seconds": round(time.monotonic() - started, 1),
        **asdict(compared),
        "problems": problems,
    }
    out.print(
        f"seed {seed} round {number}: {', '.join(played.done) or 'nothing'}; codes "
        f"{played.codes}; {record['seconds']} s; {'; '.join(problems) or 'equal'}",
        style="red" if problems else "",
    )
    if problems:
        _keep(stage, name, told, Path(f"{log}.failed") / f"{seed}-{number}")
    return record


ROWS = ("lost", "duplicated", "different")


def _keep(stage: Stage, name: str, told: Path, folder: Path) -> None:
    """Copy a failed round's objects and what its drivers told."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "drivers.log").write_bytes(told.read_bytes())
    for object_name, data in Objects.read(stage.place(name)).data.items():
        path = folder / object_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    out.print(f"kept in {folder}", style="red")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Random faults against runs; nothing may be lost.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", required=True, help="JSON lines; continued where it exists")
    parser.add_argument("--only", type=int, help="play this round alone, again")
    parser.add_argument("--report", action="store_true", help="print the log as a table and stop")
    return parser.parse_args()


if __name__ == "__main__":
    main()
