"""The whole job on a real Ray cluster: rows, resume, refusal, loss, and what bad images become."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch

from explainer import load_model
from jobs.config import Exit, ExplainConfig, InputConfig, MethodConfig
from storage.locations import Location
from storage.runs import FingerprintMismatch, open_run

ROWS = 60


@pytest.fixture
def config(small_config: ExplainConfig, tmp_path: Path) -> ExplainConfig:
    return replace(small_config, out=str(tmp_path / "run"))


def rows_of(root: Location) -> list[dict]:
    """All rows of a run in order of the manifest; maps as they are stored."""
    stored = open_run(root)
    tables = [stored.read_part(index) for index in sorted(stored.committed())]
    return sorted(
        (row for table in tables for row in table.to_pylist()),
        key=lambda row: (row["row"], row["target_rank"] or 0),
    )


def part_bytes(root: Location) -> dict[str, bytes]:
    folder = root.child("explanations")
    return {name: folder.child(name).read() for name in folder.names()}


def with_two_replicas(config: ExplainConfig) -> ExplainConfig:
    return replace(config, execution=replace(config.execution, replicas=2))


def many_images(source: str, folder: Path) -> InputConfig:
    """Every image five times: enough shards for a run to be killed in its midst."""
    for path in Path(source).rglob("*.*g"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(5):
            shutil.copy(path, folder / path.parent.name / f"{copy}-{path.name}")
    return InputConfig(images=str(folder))


def command(config: ExplainConfig, log: Path) -> subprocess.Popen:
    """The same run as a process of its own, as a user starts it."""
    arguments = [
        "explain", "--out", config.out, "--images", config.input.images,
        "--model", config.model.name, "--checkpoint", config.model.checkpoint,
        "--model-args", config.model.model_args, "--address", config.execution.address,
        "--replicas", "2", "--batch-size", "8",
    ]  # fmt: skip
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments], stdout=output, stderr=output
        )


def wait_for_parts(out: str, at_least: int, process: subprocess.Popen) -> None:
    folder = Location(out).child("explanations")
    while len(folder.names()) < at_least:
        assert process.poll() is None
        time.sleep(0.005)


def test_local_and_s3_runs_hold_the_same_rows(run_job, config, s3, tmp_path):
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3.options))
    uploaded = s3.location("images")
    for path in sorted(Path(config.input.images).rglob("*.*g")):
        name = path.relative_to(config.input.images).as_posix()
        uploaded.child(*name.split("/")).create(path.read_bytes())
    config = with_two_replicas(config)
    on_s3 = replace(
        config,
        out=s3.url("run"),
        input=InputConfig(images=s3.url("images"), storage=str(options)),
        output_storage=str(options),
    )
    assert run_job(config)[0] is Exit.COMPLETE
    assert run_job(on_s3)[0] is Exit.COMPLETE
    here, there = rows_of(Location(config.out)), rows_of(s3.location("run"))
    assert [row["row"] for row in here] == list(range(ROWS))
    # Another manifest (its uris), so another run; everything else is the same to the last bit.
    own = {"run", "uri"}
    assert [{k: v for k, v in row.items() if k not in own} for row in here] == [
        {k: v for k, v in row.items() if k not in own} for row in there
    ]
    for root in (Location(config.out), s3.location("run")):
        stored = open_run(root)
        assert stored.read_summary()["state"] == "complete"
        assert stored.read_class_heatmaps()["count"].to_pylist()
        assert root.child("class_heatmaps").names()
        assert root.child("attempts").names() == ["1.json"]
    written = [name for name in s3.location("run").walk() if name.endswith((".json", ".parquet"))]
    assert len(written) >= 8
    for name in written:
        assert b"testing-secret" not in s3.location("run").child(name).read(), name


def test_a_killed_driver_is_resumed_to_the_same_parts(run_job, config, tmp_path):
    images = many_images(config.input.images, tmp_path / "many")
    config = with_two_replicas(replace(config, input=images))
    undisturbed = replace(config, out=str(tmp_path / "undisturbed"))
    assert run_job(undisturbed)[0] is Exit.COMPLETE
    log = tmp_path / "log"
    driver = command(config, log)
    wait_for_parts(config.out, 2, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    want = part_bytes(Location(undisturbed.out))
    assert len(want) == 19
    assert 2 <= len(part_bytes(Location(config.out))) < len(want)
    assert command(config, log).wait() == Exit.COMPLETE, log.read_text()
    assert part_bytes(Location(config.out)) == want
    assert [row["row"] for row in rows_of(Location(config.out))] == list(range(5 * ROWS))
    assert Location(config.out).child("attempts").names() == ["1.json", "2.json"]


@pytest.mark.parametrize(
    ("number", "parts", "code"),
    [
        (signal.SIGTERM, 0, Exit.TERMINATED),
        (signal.SIGTERM, 2, Exit.TERMINATED),
        (signal.SIGINT, 2, Exit.INTERRUPTED),
    ],
)
def test_a_signal_ends_the_run_and_it_can_be_resumed(
    run_job, config, tmp_path, number, parts, code
):
    config = replace(config, input=many_images(config.input.images, tmp_path / "many"))
    log = tmp_path / "log"
    driver = command(config, log)
    if parts:
        wait_for_parts(config.out, parts, driver)
    else:  # while it waits for its replicas to start
        while not Location(config.out).child("attempts").names():
            assert driver.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(1.0)
    driver.send_signal(number)
    assert driver.wait(timeout=60) == code, log.read_text()
    assert "Traceback" not in log.read_text()
    assert open_run(Location(config.out)).read_summary()["state"] == "incomplete"
    assert run_job(config)[0] is Exit.COMPLETE
    assert [row["row"] for row in rows_of(Location(config.out))] == list(range(5 * ROWS))


def test_a_finished_run_says_so_and_does_nothing(run_job, finished):
    config = finished
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    code, told = run_job(config)
    assert code is Exit.COMPLETE
    assert "this run is finished; nothing to do" in told
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")} == before


def test_a_run_killed_after_its_last_part_is_closed_without_ray(run_job, config, finished):
    shutil.copytree(finished.out, config.out)
    (Path(config.out) / "summary.json").unlink()
    before = Location(config.out).child("class_heatmaps.parquet").read()
    nowhere = replace(config, execution=replace(config.execution, address="127.0.0.1:1"))
    code, told = run_job(nowhere)
    assert code is Exit.COMPLETE, told
    assert open_run(Location(config.out)).read_summary()["statuses"] == {"ok": ROWS}
    assert Location(config.out).child("class_heatmaps.parquet").read() == before


def test_a_cluster_that_cannot_be_reached_leaves_the_run_incomplete(run_job, config):
    nowhere = replace(config, execution=replace(config.execution, address="127.0.0.1:1"))
    code, told = run_job(nowhere)
    assert code is Exit.INCOMPLETE
    assert "cannot connect to the Ray cluster at 127.0.0.1:1" in told
    assert open_run(Location(config.out)).read_summary()["state"] == "incomplete"


def test_replicas_that_never_start_end_the_wait(run_job, config):
    gpu = replace(config.execution, device="cuda", start_timeout=3.0)
    code, told = run_job(replace(config, execution=gpu))
    assert code is Exit.INCOMPLETE
    assert "0 of 1 replicas at work for 3 s; each asks one node for 1 GPUs and 0 CPUs" in told


def test_another_fingerprint_is_refused_with_the_difference(run_job, finished):
    other = replace(finished, method=MethodConfig(block=-1))
    with pytest.raises(
        FingerprintMismatch, match=r"method\.block: run has -2, this command has -1"
    ):
        run_job(other)


def test_replicas_and_batch_size_change_no_row(run_job, config, finished):
    other = replace(config, execution=replace(config.execution, replicas=2, batch_size=5))
    assert run_job(other)[0] is Exit.COMPLETE
    here, there = rows_of(Location(finished.out)), rows_of(Location(other.out))
    exact = ("run", "row", "image_id", "status", "target", "predicted", "label", "label_name")
    for mine, theirs in zip(here, there, strict=True):
        assert [mine[key] for key in exact] == [theirs[key] for key in exact]
        span = mine["score_max"] - mine["score_min"]
        assert theirs["score_max"] == pytest.approx(mine["score_max"], abs=1e-3 * span)


def test_bad_images_are_rows_with_a_status(run_job, config, image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    good = (folder / "ant" / "003.jpg").read_bytes()
    (folder / "ant" / "text.jpg").write_text("this is no picture\n")
    (folder / "ant" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "bee" / "empty.png").write_bytes(b"")
    (folder / "bee" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    bad = replace(config, input=InputConfig(images=str(folder)))
    tolerant = replace(bad, execution=replace(bad.execution, max_failed=0.2))
    code, told = run_job(tolerant)
    assert code is Exit.COMPLETE, told
    rows = rows_of(Location(config.out))
    assert len(rows) == ROWS + 4
    failed = {row["image_id"]: row for row in rows if row["status"] != "ok"}
    assert {name: row["status"] for name, row in failed.items()} == {
        "ant/text.jpg": "undecodable",
        "ant/cut.jpg": "truncated",
        "bee/empty.png": "truncated",
        "bee/gone.jpg": "missing",
    }
    for row in failed.values():
        assert row["error"]
        assert row["target"] is row["saliency"] is row["predicted"] is None
    assert run_job(bad)[0] is Exit.TOO_MANY_FAILED
    summary = open_run(Location(config.out)).read_summary()
    assert summary["statuses"] == {"missing": 1, "ok": 60, "truncated": 2, "undecodable": 1}


def test_too_many_failed_images_stop_the_run_and_a_larger_tolerance_finishes_it(
    run_job, config, tmp_path
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number:03d}.jpg").write_bytes(b"nothing")
    bad = replace(config, input=InputConfig(images=str(folder)))
    code, told = run_job(bad)
    assert code is Exit.TOO_MANY_FAILED
    assert "more than --max-failed allows" in told
    assert len(open_run(Location(config.out)).committed()) < 25
    assert (
        run_job(replace(bad, execution=replace(bad.execution, max_failed=1.0)))[0] is Exit.COMPLETE
    )
    assert {row["status"] for row in rows_of(Location(config.out))} == {"undecodable"}


def test_one_bad_image_of_a_small_dataset_is_told_by_the_exit_code_of_a_whole_run(
    run_job, config, image_folder, tmp_path
):
    folder = tmp_path / "images"
    shutil.copytree(image_folder / "ant", folder)
    (folder / "zero.jpg").write_bytes(b"")
    bad = replace(config, input=InputConfig(images=str(folder)))
    for _ in range(2):
        code, told = run_job(bad)
        assert code is Exit.TOO_MANY_FAILED
        assert "1 of 21 images failed, more than --max-failed allows" in told
    stored = open_run(Location(config.out))
    assert stored.read_summary()["state"] == "failed"
    assert stored.read_class_heatmaps().num_rows
    tolerant = replace(bad, execution=replace(bad.execution, max_failed=0.05))
    assert run_job(tolerant)[0] is Exit.COMPLETE


def test_an_image_has_a_row_a_target(run_job, config):
    several = replace(config, method=MethodConfig(target="all"))
    per_image = 5
    assert run_job(several)[0] is Exit.COMPLETE
    rows = rows_of(Location(config.out))
    assert len(rows) == ROWS * per_image
    for first in range(0, len(rows), per_image):
        ranks = rows[first : first + per_image]
        assert [row["target_rank"] for row in ranks] == list(range(per_image))
        assert len({row["target"] for row in ranks}) == per_image
        assert ranks[0]["target"] == ranks[0]["predicted"]
        odds = [row["target_probability"] for row in ranks]
        assert odds == sorted(odds, reverse=True)


def test_labels_that_are_classes_are_explained_and_grouped(run_job, config, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\neel\n")
    labelled = replace(
        config,
        model=replace(config.model, class_names=str(names)),
        method=MethodConfig(target="label"),
    )
    code, told = run_job(labelled)
    assert code is Exit.COMPLETE
    assert "labels are no class" not in told
    rows = rows_of(Location(config.out))
    assert all(row["target"] == row["label"] for row in rows)
    assert {row["label_name"] for row in rows} == {"ant", "bee", "cat"}
    heatmaps = open_run(Location(config.out)).read_class_heatmaps().to_pylist()
    count = {(row["target_name"], row["group"]): row["count"] for row in heatmaps}
    right = sum(row["predicted"] == row["label"] for row in rows)
    assert sum(n for (_, group), n in count.items() if group == "all") == ROWS
    assert sum(n for (_, group), n in count.items() if group == "correct") == right
    assert sum(n for (_, group), n in count.items() if group == "incorrect") == ROWS - right


def test_parts_are_parquet_with_the_shape_of_the_maps(finished):
    stored = open_run(Location(finished.out))
    with stored.part(0).open() as file:
        schema = pq.read_schema(file)
    metadata = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert metadata["grid"] == "4x4"
    assert metadata["device"] == "cpu"
    assert metadata["precision"] == "float32"
    assert metadata["batch_size"] == "8"
    assert metadata["run"] == stored.id


def test_a_dry_run_writes_nothing(run_job, config):
    code, told = run_job(replace(config, execution=replace(config.execution, dry_run=True)))
    assert code is Exit.COMPLETE
    assert "60 images in 4 shards" in told
    assert not any(Path(config.out).rglob("*.json"))
    assert os.listdir(config.out) == []


def replica_processes(address: str) -> list[int]:
    """Processes of replicas on the cluster at `address`: children of its raylet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.read_bytes().startswith(b"ray::Replica"):
            parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
            if address in Path(f"/proc/{parent}/cmdline").read_text():
                found.append(int(path.parent.name))
    return found


def test_a_killed_replica_is_replaced_and_no_row_is_lost(config, tmp_path):
    config = replace(config, input=many_images(config.input.images, tmp_path / "many"))
    driver = command(config, tmp_path / "log")
    wait_for_parts(config.out, 2, driver)
    replicas = replica_processes(config.execution.address)
    assert replicas
    os.kill(replicas[0], signal.SIGKILL)
    assert driver.wait() == Exit.COMPLETE, (tmp_path / "log").read_text()
    assert [row["row"] for row in rows_of(Location(config.out))] == list(range(5 * ROWS))


class Store(BaseHTTPRequestHandler):
    """Serves one picture under every name, or 503 while it is down."""

    picture = b""
    down = True

    def do_GET(self) -> None:
        self.send_response(503 if self.down else 200)
        self.send_header("Content-Length", str(0 if self.down else len(self.picture)))
        self.end_headers()
        if not self.down:
            self.wfile.write(self.picture)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(image_folder: Path) -> Iterator[type[Store]]:
    Store.picture, Store.down = (image_folder / "bee" / "001.jpg").read_bytes(), True
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        Store.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Store
        server.shutdown()
        thread.join()


def test_an_outage_leaves_shards_undone_and_makes_no_rows(run_job, config, store, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri\n" + "".join(f"{store.url}/{i}.jpg\n" for i in range(20)))
    remote = replace(config, input=InputConfig(manifest=str(manifest)))
    code, told = run_job(remote)
    assert code is Exit.INCOMPLETE
    assert "incomplete: 2 shards are not yet written" in told
    lines = sorted(line for line in told.splitlines() if "left undone" in line)
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert line.startswith(f"shard {number} left undone: StorageUnavailable: http://127.0.0.1")
        assert line.endswith("HTTP 503")
    assert open_run(Location(config.out)).committed() == set()
    store.down = False
    assert run_job(remote)[0] is Exit.COMPLETE
    assert [row["status"] for row in rows_of(Location(config.out))] == ["ok"] * 20


def test_a_store_that_refuses_most_of_a_shard_makes_no_rows(run_job, config, s3, tmp_path):
    for number in range(4):
        s3.location(f"{number}.jpg").create(b"a picture")
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri\n" + "".join(f"{s3.url(f'{i}.jpg')}\n" for i in range(4)))
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3.options_without_rights))
    refused = replace(config, input=InputConfig(manifest=str(manifest), storage=str(options)))
    code, told = run_job(refused)
    assert code is Exit.INCOMPLETE
    assert "4 of a shard's 4 images are denied" in told
    assert open_run(Location(config.out)).committed() == set()
    assert "strangers-secret" not in told


def test_odd_names_of_folders_and_images(run_job, config, tmp_path):
    folder = tmp_path / "im[/b]ages #1?"
    picture = next(Path(config.input.images).rglob("*.jpg"))
    names = ["a b.jpg", "100%25.jpg", "ümlaut.jpg", "what?.jpg", "#tag.jpg", "[bold].jpg"]
    for name in names:
        (folder / "cl[/red]ass").mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / "cl[/red]ass" / name)
    odd = replace(config, out=str(tmp_path / "o[/b]ut"), input=InputConfig(images=str(folder)))
    code, told = run_job(odd)
    assert code is Exit.COMPLETE, told
    assert odd.out in told
    rows = rows_of(Location(odd.out))
    assert sorted(row["image_id"] for row in rows) == sorted(f"cl[/red]ass/{n}" for n in names)


def test_a_model_that_overflows_mixed_precision_is_told_with_exit_2(
    run_job, config, tiny_model, tmp_path
):
    arguments = json.loads(tiny_model.model_args)
    model = load_model(tiny_model.name, seed=0, model_args=arguments)
    model.vit.blocks[-1].mlp.fc1.weight.mul_(1e7)
    weights = {name: tensor.contiguous() for name, tensor in model.vit.state_dict().items()}
    (tmp_path / "large.safetensors").write_bytes(safetensors.torch.save(weights))
    large = replace(tiny_model, checkpoint=str(tmp_path / "large.safetensors"))
    mixed = replace(config, model=large, method=MethodConfig(precision="mixed"))
    code, told = run_job(mixed)
    assert code is Exit.BAD_INPUT
    assert "activations beyond float16, which mixed precision computes in" in told
    assert open_run(Location(config.out)).committed() == set()
