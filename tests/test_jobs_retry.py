"""--retry-failed: failed images are explained again, and nothing else of a run changes."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from explainer import Target
from jobs.commands import VerifyConfig
from jobs.config import Exit, InputConfig
from jobs.loader import load_batch
from jobs.plan import Shard
from jobs.retry import explained_rows, merged, next_generation, shards_to_retry
from jobs.verify import verify
from jobs.worker import ExplainWorker
from storage.locations import Location
from storage.manifests import read_folder
from storage.row_reader import read_rows
from storage.runs import open_run

ARGUMENTS = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}


@pytest.fixture
def broken(image_folder: Path, tmp_path: Path) -> Path:
    """The pictures, of which rows 3, 9 and 40 are empty files."""
    folder = tmp_path / "pictures"
    shutil.copytree(image_folder, folder)
    for row in (3, 9, 40):
        in_order(folder)[row].write_bytes(b"")
    return folder


def in_order(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.*g"), key=lambda path: str(path.relative_to(folder)))


def repair(folder: Path, image_folder: Path, row: int) -> None:
    shutil.copy(in_order(image_folder)[row], in_order(folder)[row])


def test_a_part_keeps_what_it_explains_and_gets_the_rest_anew(
    job_of, broken, image_folder, tmp_path
):
    plain = job_of(read_folder(Location(str(broken))), tmp_path / "run", ARGUMENTS)
    job = replace(plain, target=Target("top", 2))
    worker, shard = ExplainWorker(job), Shard(0, 0, 16)
    rows = read_rows(job.rows, 0, 16)

    def load() -> list:
        return [load_batch(rows, job.reading, job.model.preprocessing)]

    assert worker.explain_shard(shard, rows, load()).statuses == {"ok": 14, "truncated": 2}
    first = job.run.read_part(0)
    assert shards_to_retry(job.run, [shard]) == [shard]
    assert explained_rows(first) == [row for row in range(16) if row not in (3, 9)]
    written = job.run.part(0).read()

    assert not worker.retry_shard(worker.begin(shard, rows, load()), first).created
    assert job.run.part(0).read() == written

    repair(broken, image_folder, 9)
    report = worker.retry_shard(worker.begin(shard, rows, load()), first)
    assert report.created
    assert report.statuses == {"ok": 15, "truncated": 1}
    second = job.run.read_part(0)
    assert second.schema.metadata[b"generation"] == b"2"
    assert next_generation(second) == "3"
    key = [(r["row"], r["target_rank"]) for r in second.select(["row", "target_rank"]).to_pylist()]
    assert key == [(r, n) for r in range(16) for n in ((None,) if r == 3 else (0, 1))]
    before = {(r["row"], r["target_rank"]): r for r in first.to_pylist()}
    after = {(r["row"], r["target_rank"]): r for r in second.to_pylist()}
    assert {k: v for k, v in after.items() if k[0] != 9} == {
        k: v for k, v in before.items() if k[0] != 9
    }


def test_an_image_that_fails_now_and_did_not_before_keeps_its_rows(job_of, broken, tmp_path):
    job = job_of(read_folder(Location(str(broken))), tmp_path / "run", ARGUMENTS)
    rows = read_rows(job.rows, 0, 16)
    worker = ExplainWorker(job)
    worker.explain_shard(
        Shard(0, 0, 16), rows, [load_batch(rows, job.reading, job.model.preprocessing)]
    )
    part = job.run.read_part(0)
    in_order(broken)[5].write_bytes(b"")
    again = [load_batch(rows, job.reading, job.model.preprocessing)]
    worst = worker.table(worker.begin(Shard(0, 0, 16), rows, again))
    assert worst["status"].to_pylist().count("truncated") == 3
    assert merged(part, worst).equals(part.cast(worst.schema))


def test_a_finished_run_is_retried_and_closed_again(
    config, run_job, rows_of, finished, broken, image_folder
):
    tolerant = replace(config.execution, max_failed=0.1)
    config = replace(config, input=InputConfig(images=str(broken)), execution=tolerant)
    assert run_job(config)[0] is Exit.COMPLETE
    run = open_run(Location(config.out))
    parts = {index: run.part(index).read() for index in run.committed()}
    digest = run.read_summary()["parts_digest"]
    repair(broken, image_folder, 3)
    repair(broken, image_folder, 9)

    assert "nothing to do" in run_job(config)[1]
    code, told = run_job(replace(config, execution=replace(tolerant, retry_failed=True)))
    assert code is Exit.COMPLETE, told
    summary = run.read_summary()
    assert summary["state"] == "complete"
    assert summary["statuses"] == {"ok": 59, "truncated": 1}
    assert summary["parts_digest"] != digest
    changed = {index for index, data in parts.items() if run.part(index).read() != data}
    assert changed == {0}
    console = Console(file=io.StringIO(), width=200)
    assert verify(VerifyConfig(config.out), console) is Exit.COMPLETE, console.file.getvalue()
    got, want = rows_of(Location(config.out)), rows_of(Location(finished.out))
    for mine, other in zip(got, want, strict=True):
        assert (mine["row"], mine["image_id"]) == (other["row"], other["image_id"])
        if mine["row"] != 40:
            assert mine["target"] == other["target"]
            np.testing.assert_allclose(mine["saliency"], other["saliency"], atol=2e-3)
    assert run.root.child("breadcrumbs").names() == []
