"""Metrics as Prometheus scrapes them from Ray, the dashboard that shows them, and the logs."""

import ast
import io
import json
import logging
import math
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from jobs import logs, metrics
from jobs.config import Exit, InputConfig
from jobs.explain import explain
from storage.locations import Location
from storage.runs import open_run

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"
MOST_SECONDS = 60


def scraped() -> list:
    """Every sample on the metrics ports of the cluster's nodes, as Prometheus reads them."""
    found = []
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        for family in text_string_to_metric_families(text):
            found += [sample for sample in family.samples if "saliency" in sample.name]
    return found


def of_run(run: str) -> dict[tuple, float]:
    """The samples of a run, by name and our own tags."""
    own = ("run", "status", "stage", "state", "replica", "le")
    return {
        (s.name, *(s.labels[tag] for tag in own[1:] if tag in s.labels)): s.value
        for s in scraped()
        if s.labels.get("run") == run
    }


def until(condition, run: str) -> dict[tuple, float]:
    """The samples of a run once they are as they should be: they leave processes every 10 s."""
    ends = time.monotonic() + MOST_SECONDS
    while True:
        found = of_run(run)
        if condition(found) or time.monotonic() > ends:
            return found
        time.sleep(1)


@contextmanager
def logged_to(stream: io.StringIO) -> Iterator[None]:
    """This process logs to a stream, if anything has it log, and then no more."""
    logger = logging.getLogger(logs.LOGGER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        try:
            yield
        finally:
            for handler in list(logger.handlers):
                if isinstance(handler.formatter, logs.JsonLines):
                    logger.removeHandler(handler)
            logger.propagate = True


@pytest.fixture(scope="module")
def watched(finished, run_job, image_folder, tmp_path_factory):
    """A run of its own of 60 images and one that is none, on the tests' cluster, and what it told
    on stderr."""
    folder = tmp_path_factory.mktemp("images")
    for path in image_folder.rglob("*.*g"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    (folder / "ant" / "none.jpg").write_bytes(b"no picture")
    out = tmp_path_factory.mktemp("watched") / "run"
    execution = replace(finished.execution, max_failed=1.0, json_log=True)
    config = replace(
        finished, out=str(out), input=InputConfig(images=str(folder)), execution=execution
    )
    stream = io.StringIO()
    with logged_to(stream):
        code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    return open_run(Location(config.out)), stream.getvalue()


def test_the_driver_exports_what_summary_json_says(watched):
    run, _ = watched
    summary = run.read_summary()
    statuses = {
        ("ray_saliency_images_total", status): float(count)
        for status, count in summary["statuses"].items()
    }
    assert statuses == {
        ("ray_saliency_images_total", "ok"): 60.0,
        ("ray_saliency_images_total", "undecodable"): 1.0,
    }

    def is_closed(found: dict[tuple, float]) -> bool:
        return found.get(("ray_saliency_shards", "done")) == summary["parts"] and all(
            found.get(key) == value for key, value in statuses.items()
        )

    found = until(is_closed, run.id)
    assert is_closed(found), found
    seconds = summary["last_attempt"]["seconds"]
    for stage in ("fetch", "decode", "compute", "write", "wait"):
        exported = found.get(("ray_saliency_stage_seconds_total", stage), 0.0)
        assert exported == pytest.approx(seconds[stage], abs=1e-3), stage
    for state, count in {"queued": 0, "running": 0, "undone": 0}.items():
        assert found["ray_saliency_shards", state] == count
    assert found["ray_saliency_replicas", "ready"] == 0
    assert found["ray_saliency_images_per_second",] == 0
    assert ("ray_saliency_replicas_lost_total",) not in found


def slow_replica():
    """A replica whose second shard waits until Ray has collected what the first one told."""
    from jobs.replica import Replica

    class SlowReplica(Replica):
        def explain(self, shard, upcoming):
            if shard.index == 1:
                time.sleep(25)
            return super().explain(shard, upcoming)

    return SlowReplica


@pytest.mark.slow
def test_replicas_export_metrics_while_they_work(finished, tmp_path):
    """A replica is ended with its run, and takes with it what Ray has not yet collected."""
    # With an id of its own: that of a run is of its settings.
    config = replace(
        finished,
        out=str(tmp_path / "run"),
        method=replace(finished.method, target="top:2"),
    )
    seen: dict[tuple, float] = {}
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1):
            if (Path(config.out) / "run.json").exists():
                seen.update(of_run(open_run(Location(config.out)).id))

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        assert explain(config, Console(file=io.StringIO()), slow_replica()) is Exit.COMPLETE
    finally:
        ended.set()
        scraping.join()
    by_name: dict[str, list[float]] = {}
    for key, value in seen.items():
        by_name.setdefault(key[0], []).append(value)
    assert seen["ray_saliency_replicas", "ready"] == 1
    assert seen["ray_saliency_shards", "running"] == 1
    # How far Ray collected before the end is a matter of time: whole shards, and all batches of
    # eight that were in them.
    (images,) = by_name["ray_saliency_replica_images_total"]
    assert images in (16, 32, 48, 60)
    (batches,) = by_name["ray_saliency_batch_images_count"]
    assert math.ceil(images / 8) <= batches <= math.ceil(60 / 8)
    assert sum(by_name["ray_saliency_replica_stage_seconds_total"]) > 0


def dying_replica(marker: Path):
    """A replica that dies with its first shard, once."""
    from jobs.replica import Replica

    class DyingReplica(Replica):
        def explain(self, shard, upcoming):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().explain(shard, upcoming)

    return DyingReplica


@pytest.mark.slow
def test_a_replica_that_died_and_its_shard_are_counted(finished, tmp_path):
    config = replace(
        finished,
        out=str(tmp_path / "run"),
        method=replace(finished.method, target="top:3"),
        execution=replace(finished.execution, json_log=True),
    )
    stream = io.StringIO()
    with logged_to(stream):
        code = explain(config, Console(file=io.StringIO()), dying_replica(tmp_path / "died"))
    assert code is Exit.COMPLETE
    expected = {"ray_saliency_replicas_lost_total": 1.0, "ray_saliency_shards_retried_total": 1.0}

    def is_told(found: dict[tuple, float]) -> bool:
        return all(found.get((name,)) == value for name, value in expected.items())

    found = until(is_told, open_run(Location(config.out)).id)
    assert is_told(found), found
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (news,) = [line for line in lines if line["event"] == "news"]
    assert news["text"].startswith("a replica was lost: ")
    assert news["level"] == "warning"


def test_the_log_has_run_shard_and_replica_of_every_event(watched):
    run, told = watched
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert {line["run"] for line in lines} == {run.id}
    written = [line for line in lines if line["event"] == "shard written"]
    assert sorted(line["shard"] for line in written) == sorted(run.committed())
    assert sum(sum(line["statuses"].values()) for line in written) == 61
    assert lines[-1]["event"] == "replicas ended"
    assert lines[-1]["shards_done"] == len(run.committed())


def test_replicas_log_to_files_of_ray_without_names_and_places(watched):
    run, _ = watched
    (session,) = {s.labels["SessionName"] for s in scraped() if s.labels.get("run") == run.id}
    files = Path("/tmp/ray", session, "logs").glob("worker-*.err")
    text = [line for path in files for line in path.read_text().splitlines() if run.id in line]
    lines = [json.loads(line) for line in text]
    shards = {line["shard"] for line in lines if line["event"] == "shard written"}
    assert shards == run.committed()
    (replica,) = {line["replica"] for line in lines}
    assert re.fullmatch(r"[0-9a-f]{32}", replica)
    assert {line["node"] for line in lines} <= {node["NodeID"] for node in ray.nodes()}
    assert not any("none.jpg" in line or run.root.url in line for line in text)


def test_a_log_line_is_one_line_whatever_an_error_holds():
    stream = io.StringIO()
    with logged_to(stream):
        logs.log("nobody listens yet", {})
        logs.to_stderr()
        logs.to_stderr()
        logs.log("news", {"run": "r", "text": 'a\nb\u2028c\u202e"</script>\x1b[31m\ud800'})
    logs.log("nobody listens", {})
    assert stream.getvalue().isascii()
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["text"].startswith("a\nb")


def queried(dashboard: dict) -> set[str]:
    """The metrics of ours that the dashboard's panels ask for."""
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert all(expressions)
    return {name for each in expressions for name in re.findall(r"ray_saliency_\w+", each)}


def test_the_dashboard_asks_for_metrics_that_exist_and_for_all_of_them():
    dashboard = json.loads(DASHBOARD.read_text())
    exported = {f"ray_{metrics.PREFIX}{name}_total" for name in metrics.COUNTERS}
    exported |= {f"ray_{metrics.PREFIX}{name}" for name in metrics.GAUGES}
    exported |= {f"ray_{metrics.PREFIX}{name}_bucket" for name in metrics.HISTOGRAMS}
    assert queried(dashboard) == exported
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_every_metric_that_the_code_tells_is_one_of_the_list_with_its_tags():
    told = set()
    for path in (ROOT / "jobs").glob("watched_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("metrics."):
                told.add(ast.literal_eval(node.args[0]))
    assert told == set(metrics.COUNTERS) | set(metrics.GAUGES) | set(metrics.HISTOGRAMS)


def test_metrics_cost_microseconds(ray_address):
    started = time.perf_counter()
    for _ in range(1000):
        metrics.put("images_per_second", 1.0, run="cost")
        metrics.add("images", 1, run="cost", status="ok")
    assert time.perf_counter() - started < 1.0
