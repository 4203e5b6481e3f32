"""Whole audits of small runs: they resume, refuse what is not finished, and exit as they should."""

import io
import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from explainer.audit.verdicts import Verdict
from jobs import audit_plan, pictures
from jobs.audit import Outcome, Plan, audit, audit_job, read_subject
from jobs.audit_plan import candidates, class_images, recipients
from jobs.audit_worker import AuditWorker
from jobs.cluster import Resources
from jobs.config import (
    AuditConfig,
    ConfigurationError,
    ExecutionConfig,
    Exit,
    ExplainConfig,
    InputConfig,
    ModelConfig,
)
from jobs.demo import ARCHITECTURE, MODEL, write_pictures
from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.replica_config import ReplicaConfig
from storage.audits import Audit
from storage.lease import Lease, RunHeld
from storage.locations import Location, StorageUnavailable
from storage.runs import FingerprintMismatch, open_run


def run_audit(config: AuditConfig) -> tuple[Outcome, str]:
    console = Console(file=io.StringIO(), width=200)
    outcome = audit(config, console)
    return outcome, console.file.getvalue()


def folder_of(config: AuditConfig) -> Path:
    """Of the audits of its run the one with its seed."""
    folders = (Path(config.run) / "audit").iterdir()
    seeds = {
        json.loads((folder / "run.json").read_text())["fingerprint_of"]["seed"]: folder
        for folder in folders
    }
    return seeds[config.seed]


@pytest.fixture(scope="module")
def config(demonstration: Any, ray_address: str) -> AuditConfig:
    """The demo's audit of a watermarked and of a clean class, which is done."""
    return AuditConfig(
        run=demonstration.out,
        classes=f"{pictures.WATERMARKED},star",
        execution=ReplicaConfig(address=ray_address, replicas=1),
    )


def test_the_watermark_is_found_and_all_that_is_written_agrees(config):
    outcome, told = run_audit(config)
    folder = folder_of(config)
    verdicts = {outcome.report.name(t): v for t, v in outcome.report.of_class.items()}
    assert verdicts == {pictures.WATERMARKED: Verdict.SHORTCUT, "star": Verdict.CLEARED}
    assert outcome.code is Exit.COMPLETE
    assert "2 classes: 1 shortcut, 1 cleared" in told
    rows = pq.read_table(folder / "findings.parquet").to_pylist()
    stored = json.loads((folder / "findings.json").read_text())
    assert {row["target_name"] for row in rows} == set(pictures.CLASS_NAMES)  # by the demo
    assert [row["verdict"] for row in rows].count("shortcut") == 2
    assert [{k: v for k, v in row.items() if v is not None} for row in rows] == [
        {k: v for k, v in row.items() if v is not None} for row in stored["findings"]
    ]
    assert any("blur" in line for line in stored["cannot_see"])
    carriers = pq.read_table(folder / "carriers.parquet").to_pylist()
    parts = pq.read_table(Path(config.run) / "explanations").to_pylist()
    seeds = {row["row"]: int(Path(row["uri"]).stem) for row in parts}
    (mine,) = [
        row
        for row in rows
        if row["target_name"] == pictures.WATERMARKED and row["verdict"] == "shortcut"
    ]
    carriers = [
        row for row in carriers if (row["target"], row["cue"]) == (mine["target"], mine["cue"])
    ]
    held = {seeds[row["row"]] for row in carriers}
    truth = {seed for seed in range(60) if pictures.draw(pictures.WATERMARKED, seed).plant}
    assert 2 * len(held & truth) / (len(held) + len(truth)) >= 0.9
    assert len(carriers) == mine["carriers"]
    classes = pq.read_table(folder / "statistics.parquet").to_pylist()
    assert {row["target_name"] for row in classes} == set(pictures.CLASS_NAMES)
    picture = folder / "evidence" / f"{mine['target']:05d}-{mine['cue']}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_signal_ends_an_audit_which_is_resumed_to_the_same_bytes(config, done_when):
    run_audit(config)
    classes = Location(str(folder_of(config))).child("classes")
    evidence = {name: classes.child(name).read() for name in classes.names()}
    findings = (folder_of(config) / "findings.parquet").read_bytes()
    assert len(evidence) == len(pictures.CLASS_NAMES)
    mine = {f"{pictures.CLASS_NAMES.index(name):08d}.json" for name in config.classes.split(",")}
    for name in mine:
        classes.child(name).delete()

    with done_when(
        lambda: bool(mine & set(classes.names())), lambda: os.kill(os.getpid(), signal.SIGTERM)
    ):
        outcome, told = run_audit(config)
    assert outcome.code is Exit.TERMINATED, told
    assert "incomplete: 1 classes are not yet examined; the same command does the rest" in told
    assert not outcome.report.findings
    summary = json.loads((folder_of(config) / "summary.json").read_text())
    assert (summary["state"], summary["classes_missing"]) == ("incomplete", 1)
    _, told = run_audit(config)
    assert "2 classes, of which 1 are to be examined" in told
    assert {name: classes.child(name).read() for name in classes.names()} == evidence
    assert (folder_of(config) / "findings.parquet").read_bytes() == findings
    _, told = run_audit(config)
    assert "2 classes, of which 0 are to be examined" in told


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fail_on": "shortcut"}, Exit.FINDINGS),
        ({"fail_on": "shortcut", "classes": "star"}, Exit.COMPLETE),
        ({"budget": 1e-9, "seed": 1}, Exit.INCOMPLETE),
        ({"budget": 1e-9, "seed": 1, "fail_on": "shortcut"}, Exit.INCOMPLETE),
        ({"budget": 1e-9, "seed": 1, "fail_on": "shortcut", "allow_untested": True}, Exit.COMPLETE),
    ],
)
def test_exit_codes_say_what_was_found_and_what_was_not_tested(config, changes, code):
    outcome, told = run_audit(replace(config, **changes))
    assert outcome.code is code, told
    if "budget" in changes:
        assert "2 classes are not yet examined; the same command does the rest" in told


def test_classes_that_cannot_be_tested_pass_only_where_they_are_allowed_to(finished):
    execution = ReplicaConfig(address=finished.execution.address, replicas=1)
    config = AuditConfig(finished.out, images=10, execution=execution)  # five of a half
    outcome, told = run_audit(config)
    assert outcome.code is Exit.COMPLETE
    assert "not testable" in told
    strict = replace(config, fail_on="shortcut")
    assert run_audit(strict)[0].code is Exit.INCOMPLETE
    assert run_audit(replace(strict, allow_untested=True))[0].code is Exit.COMPLETE


def test_the_images_of_many_parts_are_those_of_all_at_once(config, monkeypatch):
    run = read_subject(config, "an audit").run
    whole = candidates(run, 20, seed=0)
    monkeypatch.setattr(audit_plan, "PRUNED_AT", 8)  # parts have 16 rows
    pruned = candidates(run, 20, seed=0)
    assert sorted(whole.rows.tolist()) == sorted(pruned.rows.tolist())
    assert len(whole.rows) == 20 * len(pictures.CLASS_NAMES)


def test_what_is_no_finished_run_is_refused(config, finished, tmp_path):
    with pytest.raises(ConfigurationError, match=r"RUN: .* holds no run \(no run.json\)"):
        run_audit(replace(config, run=str(tmp_path)))
    for name in ("run.json", "summary.json"):
        data = json.loads((Path(finished.out) / name).read_text())
        (tmp_path / name).write_text(json.dumps(data | {"state": "incomplete"}))
    with pytest.raises(ConfigurationError, match=r"is explained; .* is incomplete: let"):
        run_audit(replace(config, run=str(tmp_path)))
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ConfigurationError, match="is not begun: let `saliency explain` end first"):
        run_audit(replace(config, run=str(tmp_path)))


def test_images_that_have_changed_are_another_run(config):
    extra = Path(config.run) / "pictures" / "star" / "99999.jpg"
    extra.write_bytes((extra.parent / "00000.jpg").read_bytes())
    try:
        with pytest.raises(FingerprintMismatch, match="manifest: run has "):
            run_audit(config)
    finally:
        extra.unlink()


@pytest.mark.parametrize(("gone", "refused"), [(20, False), (40, True)])
def test_images_that_are_gone_are_left_out_and_a_class_that_lost_most_is_left(
    config, gone, refused
):
    subject = read_subject(config, "an audit")
    found = candidates(subject.run, config.images, config.seed)
    plan = Plan(class_images(found), recipients(found))
    audited = Audit(open_run(Location(str(folder_of(config)))))
    need = Resources("cpu", 1, 1, 0, loader_cpus=0, ahead=1, threads=1)
    job = audit_job(config, subject, audited, plan.only({0}), need)

    def load(tables: Sequence[pa.Table]) -> Iterator[Batch]:
        left = gone
        for table in tables:
            uris = table["uri"].to_pylist()
            lost = [uri + ".gone" if i < left else uri for i, uri in enumerate(uris)]
            left -= len(uris)
            place = table.column_names.index("uri")
            changed = table.set_column(place, "uri", pa.array(lost))
            yield load_batch(changed, job.reading, job.model.preprocessing)

    worker = AuditWorker(job, load)
    shard = Shard(0, 0, 60)
    if not refused:
        loaded = worker.load_class(shard, {})
        assert len(loaded.sample) == 60 - gone
        assert loaded.rows.tolist() == plan.classes[0].rows[gone:].tolist()
        return
    with pytest.raises(StorageUnavailable, match="40 of 60 images of class 0 cannot be loaded"):
        worker.load_class(shard, {})


def test_all_that_is_wrong_is_told_at_once(config):
    execution = ReplicaConfig(replicas="4:2", replicas_per_gpu=0, shard_timeout=-1)
    wrong = replace(config, images=1, seed=-1, budget=-2.0, execution=execution)
    with pytest.raises(ConfigurationError) as error:
        run_audit(wrong)
    assert error.value.problems == [
        "--images must be at least 2; got 1",
        "--seed must be at least 0; got -1",
        "--replicas-per-gpu must be at least 1; got 0",
        "--replicas is N, MIN:MAX or MIN:, with 1 <= MIN <= MAX; got '4:2'",
        "--shard-timeout is in seconds, more than 0; got -1",
        "--budget is in minutes, more than 0; got -2",
    ]
    with pytest.raises(ConfigurationError, match="--classes: cow is no class of the run's images"):
        run_audit(replace(config, classes="star,cow"))


def test_one_driver_at_a_time_holds_an_audit(config):
    root = Location(str(folder_of(config)))
    with (
        Lease(root).held(False, lambda _: None),
        pytest.raises(RunHeld, match="which is alive"),
    ):
        run_audit(config)


@pytest.mark.slow
def test_a_run_and_images_in_s3_are_audited_there(config, run_job, s3, tmp_path):
    options = tmp_path / "storage.json"
    options.write_text(json.dumps(s3.options))
    write_pictures(s3.location("pictures"), 12 * len(pictures.CLASS_NAMES))
    explained = ExplainConfig(
        model=ModelConfig(ARCHITECTURE, checkpoint=str(MODEL)),
        out=s3.url("run"),
        input=InputConfig(images=s3.url("pictures"), storage=str(options)),
        execution=ExecutionConfig(address=config.execution.address, replicas=1),
        output_storage=str(options),
    )
    assert run_job(explained)[0] is Exit.COMPLETE
    remote = replace(config, run=explained.out, classes="star")
    remote = replace(remote, input_storage=str(options), output_storage=str(options))
    outcome, told = run_audit(remote)
    assert outcome.code is Exit.COMPLETE, told
    assert list(outcome.report.of_class.values()) == [Verdict.CLEARED]
    written = {name for name in s3.location("run/audit").walk() if "/lease/" not in name}
    cues = [f.cue for f in outcome.report.findings if f.cue is not None]
    assert {name.rpartition("/")[2] for name in written} == {
        "run.json", "summary.json", "00000007.json",
        "findings.parquet", "findings.json", "carriers.parquet", "statistics.parquet",
        *(f"00007-{cue}.png" for cue in cues),
    }  # fmt: skip
