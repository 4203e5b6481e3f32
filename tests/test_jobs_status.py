"""`saliency status`: states, pace and failures of runs, local and on S3, also of hostile ones."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import status as command
from jobs.commands import StatusConfig, VerifyConfig
from jobs.config import ConfigurationError, Exit
from jobs.look import count_statuses, look
from jobs.pace import Pace, Written, pace
from jobs.status import planned_shards, status
from jobs.status_told import duration
from jobs.terminal import Terminal
from jobs.verify import verify as verified
from storage.lease import Lease
from storage.locations import Location
from storage.runs import Run, open_or_create, open_run

ROOT = Path(__file__).resolve().parents[1]


def told(place: Location, tmp_path: Path, **asked: bool) -> tuple[Exit, str]:
    """What the command says of the run at a place, and its exit code."""
    options = tmp_path / "options.json"
    options.write_text(json.dumps(dict(place.options)))
    console = Terminal(file=io.StringIO(), width=160, highlight=False, emoji=False)
    code = status(StatusConfig(place.url, output_storage=str(options), **asked), console)
    return code, console.file.getvalue()


def as_json(place: Location, tmp_path: Path, **asked: bool) -> dict:
    return json.loads(told(place, tmp_path, json=True, **asked)[1])


def new_run(place: Location, rows: int = 100, size: int = 16) -> Run:
    described = {"rows": rows, "shard_size": size, "targets_per_image": 1}
    return open_or_create(place, {"fingerprint_of": {"a": 1}, **described})


def write_parts(run: Run, indices: range, **metadata: str) -> None:
    table = pa.table({"status": ["ok", "missing"], "target_rank": pa.array([0, None], pa.int16())})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata or None), sink)
    for index in indices:
        run.publish(index, sink.getvalue())


def test_a_run_that_nobody_began_is_not_started(location, tmp_path):
    new_run(location)
    code, text = told(location, tmp_path)
    assert code is Exit.INCOMPLETE
    assert "not started" in text
    assert "0 of 100 (0%), 0 of 7 shards" in text


def test_a_held_run_is_running_and_then_stopped_and_resumable(location, tmp_path):
    run = new_run(location)
    write_parts(run, range(3))
    with Lease(location).held(False, lambda _: None) as lease:
        run.begin_attempt({"started": "9999"})
        run.write_summary({"state": "running"})
        found = as_json(location, tmp_path)
        assert found["state"] == "running"
        assert (found["rows_done"], found["shards_done"]) == (48, 3)
        assert found["driver"]["process"] == os.getpid()
        assert found["driver"]["since"] == lease.claim.since
        assert found["images_per_second"] is None
        assert "too few" in found["pace_unknown"]
    code, text = told(location, tmp_path)
    assert code is Exit.INCOMPLETE
    assert "no driver is at work on it; the `saliency explain` that made it does the rest" in text
    assert as_json(location, tmp_path)["driver"] is None


def test_a_driver_that_holds_a_run_and_has_not_begun_has_no_pace_of_the_driver_before(tmp_path):
    place = Location(str(tmp_path / "run"))
    run = new_run(place)
    run.begin_attempt({"started": "2000-01-01T00:00:00+00:00"})
    write_parts(run, range(6))
    with Lease(place).held(False, lambda _: None):
        found = as_json(place, tmp_path)
    assert found["state"] == "running"
    assert found["pace_unknown"] == "replicas are not at work yet"


def test_errors_of_the_last_driver_are_told_as_text(tmp_path):
    place = Location(str(tmp_path / "run"))
    run = new_run(place)
    hostile = "[red]no\nhost\u202e <script> \x1b[31m"
    errors = {hostile: 3, "b": 1, "c": 1, "d": 1}
    run.write_summary({"state": "incomplete", "errors": errors})
    code, text = told(place, tmp_path)
    assert code is Exit.INCOMPLETE
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]no" in text
    assert "(3 shards)" in text
    assert "and 1 errors more; summary.json has them" in text


def test_too_many_failed_images_exit_3(tmp_path):
    place = Location(str(tmp_path / "run"))
    new_run(place).write_summary({"state": "failed", "errors": {}})
    code, text = told(place, tmp_path)
    assert code is Exit.TOO_MANY_FAILED
    assert "more images failed than --max-failed allows" in text


def test_a_finished_run_that_lost_a_part_is_not_called_complete(tmp_path):
    place = Location(str(tmp_path / "run"))
    run = new_run(place)
    write_parts(run, range(7))
    run.write_summary({"state": "complete", "parts_digest": "d", "statuses": {"ok": 100}})
    assert told(place, tmp_path)[0] is Exit.COMPLETE
    run.part(4).delete()
    found = as_json(place, tmp_path)
    assert (found["state"], found["rows_done"]) == ("stopped", 84)


def test_failures_are_counted_from_footers_and_of_earlier_parts_from_rows(location, tmp_path):
    run = new_run(location)
    write_parts(run, range(2), statuses='{"ok": 14, "denied": 2}')
    write_parts(run, range(2, 4))
    assert as_json(location, tmp_path)["statuses"] is None
    expected = {"denied": 4, "missing": 2, "ok": 30}
    assert as_json(location, tmp_path, failures=True)["statuses"] == expected
    assert "4 denied, 2 missing, 30 ok" in told(location, tmp_path, failures=True)[1]


@pytest.mark.parametrize("statuses", ["[1]", "no json", '{"ok": "many"}', "7"])
def test_a_damaged_part_is_told(statuses, tmp_path):
    place = Location(str(tmp_path / "run"))
    run = new_run(place)
    write_parts(run, range(1), statuses=statuses)
    with pytest.raises(ConfigurationError, match=r"part-00000000.parquet: .*verify` tells more"):
        told(place, tmp_path, failures=True)
    run.part(0).replace(b"no Parquet")
    with pytest.raises(ConfigurationError, match=r"part-00000000.parquet: .*verify` tells more"):
        told(place, tmp_path, failures=True)
    assert told(place, tmp_path)[0] is Exit.INCOMPLETE


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"fingerprint_of": {}, "rows": "many"}'])
def test_what_is_no_run_is_told_and_exits_2(text, tmp_path):
    with pytest.raises(ConfigurationError, match=r"RUN: .* holds no run \(no run.json\)"):
        told(Location(str(tmp_path)), tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"RUN: "):
        told(Location(str(tmp_path)), tmp_path)


def test_audits_and_evaluations_have_states_of_their_own(location, tmp_path):
    run = new_run(location)
    write_parts(run, range(7))
    run.write_summary({"state": "complete", "parts_digest": "now", "statuses": {"ok": 100}})
    for kind, digest, state in (
        ("audit", "now", "complete"),
        ("audit", "before", "incomplete"),
        ("evaluate", "now", None),
    ):
        place = location.child(kind, f"{digest}-{state}")
        beside = open_or_create(place, {"fingerprint_of": {"parts_digest": digest}})
        if state is not None:
            beside.write_summary({"state": state})
        place.child("classes", "00000001.json").create(b"{}")
    location.child("audit", "notes.txt").create(b"mine")
    with Lease(location.child("evaluate", "now-None")).held(False, lambda _: None):
        found = as_json(location, tmp_path)
        code, text = told(location, tmp_path)
    assert code is Exit.COMPLETE
    assert [(b["kind"], b["state"], b["done"], b["of_these_rows"]) for b in found["beside"]] == [
        ("audit", "stopped", 1, False),
        ("audit", "complete", 1, True),
        ("evaluate", "running", 0, True),
    ]
    assert found["beside"][2]["driver"]["process"] == os.getpid()
    assert "stopped, 1 classes examined; the run's rows have changed since" in text


def test_a_driver_elsewhere_is_believed_by_the_stores_clock_or_watched(location):
    lease = Lease(location, seconds=1.2)
    elsewhere = replace(lease.claim, machine="another", host="far")
    mine = location.child("lease", "00000001.json")

    def write(beat: int) -> None:
        claim = replace(elsewhere, beat=beat)
        mine.replace(json.dumps(vars(claim)).encode())

    write(0)
    # S3's clock ticks in seconds, so that it is already old there for so short an expiry.
    assert Lease(location).holder().claim.host == "far"
    time.sleep(2.5)
    began = time.monotonic()
    assert lease.holder() is None
    assert time.monotonic() - began < 5
    renewing = threading.Timer(0.2, write, (1,))
    renewing.start()
    assert lease.holder().claim.beat == 1
    renewing.join()


def test_a_driver_whose_store_is_a_day_off_is_found_by_watching_it(tmp_path):
    place = Location(str(tmp_path / "run"))
    lease = Lease(place, seconds=1.2)
    claim = replace(lease.claim, machine="another")
    path = tmp_path / "run" / "lease" / "00000001.json"
    for shift in (-86400, 86400):
        place.child("lease", "00000001.json").replace(json.dumps(vars(claim)).encode())
        os.utime(path, (time.time() + shift,) * 2)
        assert lease.holder() is None


def test_the_rows_of_shards_that_follow_tars_come_from_the_manifest(
    config, tiny_model, run_job, image_folder, tmp_path
):
    import tarfile

    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for path in sorted((image_folder / "ant").iterdir())[number * 7 : number * 7 + 7]:
                tar.add(path, path.name)
    given = replace(config.input, images=None, manifest=str(tmp_path / "*.tar"))
    assert run_job(replace(config, input=given))[0] is Exit.COMPLETE
    found = as_json(Location(config.out), tmp_path)
    assert (found["rows_done"], found["shards_done"]) == (14, len(open_run_parts(config.out)))
    Location(config.out).child("explanations", open_run_parts(config.out)[0]).delete()
    assert as_json(Location(config.out), tmp_path)["rows_done"] == 7


def open_run_parts(out: str) -> list[str]:
    return Location(out).child("explanations").names()


def test_a_real_run_is_watched_from_start_to_end(config, run_job, tmp_path):
    seen, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            if (Path(config.out) / "run.json").exists():
                run = open_run(Location(config.out))
                seen.append(look(run, planned_shards(run), failures=True))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert run_job(config)[0] is Exit.COMPLETE
    finally:
        ended.set()
        watching.join()
    running = [found for found in seen if found.state == "running"]
    assert running
    assert {found.driver.process for found in running} == {os.getpid()}
    assert {found.state for found in seen} <= {"not started", "running", "complete"}
    counts = [found.rows_done for found in seen]
    assert counts == sorted(counts)
    for found in running:
        assert sum(found.statuses.values()) >= found.rows_done
    final = as_json(Location(config.out), tmp_path)
    assert (final["state"], final["rows_done"], final["statuses"]) == ("complete", 60, {"ok": 60})
    run = open_run(Location(config.out))
    assert count_statuses(run, run.committed()) == run.read_summary()["statuses"]
    assert verified(VerifyConfig(config.out), Terminal(file=io.StringIO())) is Exit.COMPLETE


def test_watching_tells_a_line_each_time_and_ends_with_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WATCH_SECONDS", 0.2)
    place = Location(str(tmp_path / "run"))
    run = new_run(place)
    run.begin_attempt({"started": "9999"})

    def work() -> None:
        with Lease(place).held(False, lambda _: None):
            for index in range(7):
                write_parts(run, range(index, index + 1))
                time.sleep(0.2)
            run.write_summary({"state": "complete", "parts_digest": "d", "statuses": {"ok": 100}})

    driver = threading.Thread(target=work)
    driver.start()
    code, text = told(place, tmp_path, watch=True)
    driver.join()
    assert code is Exit.COMPLETE
    lines = [line for line in text.splitlines() if line.startswith("running: ")]
    assert len(lines) > 2
    assert any("images/s" in line for line in lines)
    assert text.count("100 of 100 (100%), 7 of 7 shards") >= 1
    records = told(place, tmp_path, watch=True, json=True)[1].splitlines()
    assert [json.loads(line)["state"] for line in records] == ["complete"]


def test_status_loads_neither_torch_nor_ray_and_exits_with_its_code(tmp_path):
    new_run(Location(str(tmp_path / "run")))
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobs.cli", "status", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == 1
    assert "not started" in ended.stdout
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "pyarrow" in imported
    assert not imported & {"torch", "ray", "timm"}
    nothing = [sys.executable, "-m", "jobs.cli", "status", str(tmp_path)]
    assert subprocess.run(nothing, capture_output=True, check=False, cwd=ROOT).returncode == 2


def steady(count: int, every: float, start: float = 0.0, replicas: int = 1) -> list[Written]:
    """Parts of 10 rows: `replicas` of them at once, every so many seconds."""
    return [Written(10, start + every * (number // replicas)) for number in range(count)]


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("clock", [0.0, -1e6, 4e9])
def test_pace_is_that_of_the_parts_whatever_the_clock_and_however_they_come(replicas, clock):
    found = pace(steady(40, 2.0, clock, replicas), since=clock - 30)
    assert found.images_per_second == pytest.approx(5.0 * replicas, rel=0.02)
    assert found.seconds_for(100) == pytest.approx(20 / replicas, rel=0.02)


def test_pace_knows_neither_earlier_drivers_nor_the_pause_between_them():
    parts = steady(40, 0.1) + steady(10, 2.0, start=9000.0)
    assert pace(parts, since=8990.0).images_per_second == pytest.approx(5.0)


def test_pace_is_of_the_last_ten_minutes_where_replicas_came_later():
    parts = steady(100, 10.0) + steady(600, 1.0, start=1001.0)
    assert pace(parts, since=0.0).images_per_second == pytest.approx(10.0, rel=0.01)
    slow = steady(30, 300.0)
    assert pace(slow, since=0.0).images_per_second == pytest.approx(1 / 30)


def test_pace_says_when_it_cannot_be_told():
    assert pace(steady(3, 1.0), None) == Pace(
        None, "3 parts of this driver are too few to tell, from 4 on"
    )
    assert "one tick" in (pace(steady(8, 1.0, replicas=8), None).unknown or "")
    untold = pace([Written(10, None)] * 8, None)
    assert untold.unknown == "this store does not tell when parts were written"
    assert untold.seconds_for(5) is None


def test_durations_are_told_in_two_units():
    seconds = (4.4, 61, 3599, 7260, 90_000, 86_400 * 3)
    assert [duration(s) for s in seconds] == [
        "4 s", "1 min", "1 h", "2 h 1 min", "1 d 1 h", "3 d",
    ]  # fmt: skip
