"""The whole job on a real Ray cluster: rows, refusal, and what bad images and stores become."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
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
Runner = Callable[[ExplainConfig], tuple[Exit, str]]


def test_local_and_s3_runs_hold_the_same_rows(run_job, config, finished, s3, tmp_path, rows_of):
    """Both written by two replicas; one writes the same."""
    local = replace(config, execution=replace(config.execution, replicas=2))
    assert run_job(local)[0] is Exit.COMPLETE
    options = tmp_path / "options.json"
    options.write_text(json.dumps(s3.options))
    uploaded = s3.location("images")
    for path in sorted(Path(local.input.images).rglob("*.*g")):
        name = path.relative_to(local.input.images).as_posix()
        uploaded.child(*name.split("/")).create(path.read_bytes())
    on_s3 = replace(
        local,
        out=s3.url("run"),
        input=InputConfig(images=s3.url("images"), storage=str(options)),
        output_storage=str(options),
    )
    assert run_job(on_s3)[0] is Exit.COMPLETE
    here, there = rows_of(Location(local.out)), rows_of(s3.location("run"))
    assert [row["row"] for row in here] == list(range(ROWS))
    # Another manifest (its uris), so another run; everything else is the same to the last bit.
    own = {"run", "uri"}
    assert [{k: v for k, v in row.items() if k not in own} for row in here] == [
        {k: v for k, v in row.items() if k not in own} for row in there
    ]
    assert here == rows_of(Location(finished.out))
    for root in (Location(local.out), s3.location("run")):
        stored = open_run(root)
        assert stored.read_summary()["state"] == "complete"
        assert stored.read_class_heatmaps()["count"].to_pylist()
        assert root.child("class_heatmaps").names()
        assert root.child("attempts").names() == ["1.json"]
    written = [name for name in s3.location("run").walk() if name.endswith((".json", ".parquet"))]
    assert len(written) >= 8
    for name in written:
        assert b"testing-secret" not in s3.location("run").child(name).read(), name


def test_the_summary_tells_where_the_time_went(finished):
    attempt = open_run(Location(finished.out)).read_summary()["last_attempt"]
    seconds = attempt["seconds"]
    stages = {"fetch", "decode", "wait", "compute", "write"}
    assert set(seconds) == {"start", "run", "aggregate"} | stages
    assert all(seconds[stage] > 0 for stage in stages)
    replicas = finished.execution.replicas
    assert seconds["start"] < seconds["run"]
    assert seconds["wait"] + seconds["compute"] + seconds["write"] < replicas * seconds["run"]
    assert attempt["images"] == ROWS
    assert attempt["images_per_second"] == pytest.approx(ROWS / seconds["run"], rel=0.02)
    after_start = ROWS / (seconds["run"] - seconds["start"])
    assert attempt["images_per_second_after_start"] == pytest.approx(after_start, rel=0.02)
    assert attempt["limited_by"] == "too short to tell what limits it"


def test_a_finished_run_says_so_and_does_nothing(run_job, finished):
    config = finished
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    code, told = run_job(config)
    assert code is Exit.COMPLETE
    assert "this run is finished; nothing to do" in told
    assert "images/s after a start-up of" in told
    assert "too short to tell what limits it" in told
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


def test_a_store_that_fails_while_parts_are_summed_leaves_the_run_incomplete(
    run_job, config, finished
):
    shutil.copytree(finished.out, config.out)
    (Path(config.out) / "summary.json").unlink()
    part = Path(open_run(Location(config.out)).part(1).url)
    kept = part.read_bytes()
    part.unlink()
    part.symlink_to("/proc/self/mem")  # it opens, and no byte of it can be read
    code, told = run_job(config)
    assert code is Exit.INCOMPLETE
    assert "StorageUnavailable: " in told
    assert "incomplete: the class heatmaps are not yet written to" in told
    assert open_run(Location(config.out)).read_summary()["state"] == "incomplete"
    part.unlink()
    part.write_bytes(kept)
    assert run_job(config)[0] is Exit.COMPLETE


def test_another_cluster_than_the_connected_one_leaves_the_run_incomplete(run_job, config):
    nowhere = replace(config, execution=replace(config.execution, address="127.0.0.1:1"))
    code, told = run_job(nowhere)
    assert code is Exit.INCOMPLETE
    assert "and --address asks for 127.0.0.1:1: call ray.shutdown() first" in told
    assert open_run(Location(config.out)).read_summary()["state"] == "incomplete"


def test_replicas_that_never_start_end_the_wait(run_job, config):
    gpu = replace(config.execution, device="cuda", start_timeout=1.0)
    code, told = run_job(replace(config, execution=gpu))
    assert code is Exit.INCOMPLETE
    assert "0 of 1 replicas at work for 1 s; each asks one node for 1 GPUs and 0 CPUs" in told


def test_another_fingerprint_is_refused_with_the_difference(run_job, finished):
    other = replace(finished, method=MethodConfig(block=-1))
    with pytest.raises(
        FingerprintMismatch, match=r"method\.block: run has -2, this command has -1"
    ):
        run_job(other)


def test_the_batch_size_changes_no_row(run_job, config, finished, rows_of):
    other = replace(config, execution=replace(config.execution, batch_size=5))
    assert run_job(other)[0] is Exit.COMPLETE
    here, there = rows_of(Location(finished.out)), rows_of(Location(other.out))
    exact = ("run", "row", "image_id", "status", "target", "predicted", "label", "label_name")
    for mine, theirs in zip(here, there, strict=True):
        assert [mine[key] for key in exact] == [theirs[key] for key in exact]
        span = mine["score_max"] - mine["score_min"]
        assert theirs["score_max"] == pytest.approx(mine["score_max"], abs=1e-3 * span)


def test_bad_images_are_rows_and_odd_names_are_names(
    run_job, config, image_folder, tmp_path, rows_of
):
    images = tmp_path / "im[/b]ages #1?"
    folder = images / "cl[/red]ass"
    folder.mkdir(parents=True)
    good = (image_folder / "bee" / "001.jpg").read_bytes()
    names = ["a b.jpg", "100%25.jpg", "ümlaut.jpg", "what?.jpg", "#tag.jpg", "[bold].jpg"]
    bad = {"text.jpg": b"this is no picture\n", "cut.jpg": good[: len(good) // 2], "zero.png": b""}
    for name, data in (dict.fromkeys(names, good) | bad).items():
        (folder / name).write_bytes(data)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    strict = replace(config, out=str(tmp_path / "o[/b]ut"), input=InputConfig(images=str(images)))
    for _ in range(2):  # a small dataset is explained whole, and then there is nothing to do
        code, told = run_job(strict)
        assert code is Exit.TOO_MANY_FAILED
        assert "4 of 10 images failed, more than --max-failed allows" in told
        assert strict.out in told
    stored = open_run(Location(strict.out))
    assert stored.read_summary()["state"] == "failed"
    assert stored.read_summary()["statuses"] == {
        "missing": 1, "ok": 6, "truncated": 2, "undecodable": 1,
    }  # fmt: skip
    assert stored.read_class_heatmaps().num_rows
    tolerant = replace(strict, execution=replace(strict.execution, max_failed=0.4))
    assert run_job(tolerant)[0] is Exit.COMPLETE
    rows = {row["image_id"].removeprefix("cl[/red]ass/"): row for row in rows_of(stored.root)}
    status = {"text.jpg": "undecodable", "cut.jpg": "truncated", "zero.png": "truncated"}
    status |= {"gone.jpg": "missing"} | dict.fromkeys(names, "ok")
    assert {name: row["status"] for name, row in rows.items()} == status
    for name in set(status) - set(names):
        assert rows[name]["error"]
        assert rows[name]["target"] is rows[name]["saliency"] is rows[name]["predicted"] is None


@pytest.fixture(scope="module")
def stopped(
    small_config: ExplainConfig, run_job: Runner, tmp_path_factory: pytest.TempPathFactory
) -> ExplainConfig:
    """1024 images without content in 64 shards: a run that too many failures have stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "nothing.jpg").write_bytes(b"nothing")
    lines = [f"nothing.jpg,{number}" for number in range(1024)]
    (folder / "list.csv").write_text("\n".join(["uri,image_id", *lines]))
    bad = replace(
        small_config,
        out=str(folder / "run"),
        input=InputConfig(manifest=str(folder / "list.csv")),
    )
    code, told = run_job(bad)
    assert code is Exit.TOO_MANY_FAILED
    assert "more than --max-failed allows" in told
    return bad


def test_too_many_failed_images_stop_a_run_in_its_midst(stopped):
    assert len(open_run(Location(stopped.out)).committed()) < 64
    assert open_run(Location(stopped.out)).read_summary()["state"] == "failed"


def test_a_larger_tolerance_finishes_it_and_many_parts_are_summed_by_the_cluster(run_job, stopped):
    tolerant = replace(stopped, execution=replace(stopped.execution, max_failed=1.0))
    assert run_job(tolerant)[0] is Exit.COMPLETE
    stored = open_run(Location(stopped.out))
    first = stored.read_summary()
    assert first["statuses"] == {"undecodable": 1024}
    assert first["parts"] == 64
    stored.summary.delete()
    nowhere = replace(tolerant, execution=replace(tolerant.execution, address="127.0.0.1:1"))
    code, told = run_job(nowhere)  # nothing is left to explain, and yet Ray is needed
    assert code is Exit.INCOMPLETE
    assert "incomplete: the class heatmaps are not yet written to" in told
    assert run_job(tolerant)[0] is Exit.COMPLETE
    assert stored.read_summary()["parts_digest"] == first["parts_digest"]
    assert stored.read_summary()["last_attempt"]["images"] == 0


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


@pytest.mark.slow
def test_an_outage_leaves_shards_undone_and_makes_no_rows(
    run_job, config, store, tmp_path, rows_of
):
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
