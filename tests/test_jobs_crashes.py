"""Images that end the process that works on them: found, given a row, and their neighbours too."""

import io
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from rich.console import Console

from explainer import Explanation
from explainer.preprocess import Preprocessing
from jobs.config import Exit
from jobs.crashes import MOST_CRASHED, Suspicion, positions
from jobs.explain import explain
from jobs.loader import Batch, load_batch
from jobs.plan import Shard
from jobs.replica import Replica
from jobs.worker import ExplainWorker, Job
from storage.images import Reading
from storage.locations import Location
from storage.manifests import read_folder
from storage.row_reader import read_rows
from storage.runs import open_run

BATCH = 8


def searched(suspicion: Suspicion, kills: Callable[[range], bool]) -> int:
    """Explain a shard as the pool does until it survives; how many attempts and probes it took."""
    shard, steps = suspicion.shard, 0

    def touched(rows: range) -> bool:
        return any(kills(range(row, row + 1)) for row in rows if row not in suspicion.crashed)

    while steps < 1000:
        steps += 1
        probe = suspicion.probe
        if probe is not None:
            if touched(range(probe.start, probe.stop)):
                suspicion.killed("died", None)
            else:
                suspicion.survived()
            continue
        batches = [
            range(start, min(start + BATCH, shard.stop))
            for start in range(shard.start, shard.stop, BATCH)
        ]
        in_hand = next((rows for rows in batches if touched(rows)), None)
        if in_hand is None:
            return steps
        suspicion.killed("died", Shard(shard.index, in_hand.start, in_hand.stop))
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 37])
def test_every_poisonous_row_is_found_and_no_other(rows):
    random = np.random.default_rng(rows)
    for _ in range(200):
        poisonous = set(100 + random.choice(rows, min(rows, random.integers(0, 4)), replace=False))
        suspicion = Suspicion(Shard(3, 100, 100 + rows))
        steps = searched(suspicion, lambda found, all_=poisonous: bool(all_ & set(found)))
        assert set(suspicion.crashed) == poisonous
        # A kill and its repetition; three probes of a batch of eight, the row again, and others
        # until one survives; then the next, without a first.
        assert steps <= 2 + 9 * len(poisonous)


def test_what_happens_twice_and_not_again_convicts_nobody():
    suspicion = Suspicion(Shard(0, 0, 16))
    assert suspicion.probe is None
    suspicion.killed("node lost", None)
    assert suspicion.probe is None
    suspicion.killed("node lost", None)
    probes = []
    while (probe := suspicion.probe) is not None:
        probes.append((probe.start, probe.stop))
        suspicion.survived()
    assert probes == [(0, 8), (8, 12), (12, 14), (14, 15), (15, 16)]
    assert suspicion.crashed == {}


def test_where_every_row_kills_none_is_convicted():
    suspicion = Suspicion(Shard(2, 32, 48))
    suspicion.killed("died", None)
    suspicion.killed("died", Shard(2, 32, 40))
    probes = []
    while (probe := suspicion.probe) is not None:
        probes.append(range(probe.start, probe.stop))
        assert suspicion.killed("died", None) is None
    assert [len(rows) for rows in probes] == [4, 2, 1, 1, 1, 1, 1]
    assert [rows.start for rows in probes[2:]] == [32, 32, 47, 40, 31]
    assert suspicion.crashed == {}


def test_a_row_that_kills_alone_but_once_is_not_convicted():
    suspicion = Suspicion(Shard(0, 0, 2))
    suspicion.killed("died", None)
    suspicion.killed("died", None)
    suspicion.survived()
    assert suspicion.probe == Shard(0, 1, 2)
    suspicion.killed("node lost", None)
    assert suspicion.probe == Shard(0, 1, 2)
    assert suspicion.survived() is None
    assert suspicion.probe is None
    assert suspicion.crashed == {}


def test_the_first_row_is_convicted_once_another_survives():
    suspicion = Suspicion(Shard(0, 0, 2))
    suspicion.killed("died", None)
    suspicion.killed("died", None)
    assert suspicion.killed("died", None) is None
    assert suspicion.probe == Shard(0, 0, 1)
    assert suspicion.killed("died", None) is None
    assert suspicion.probe == Shard(0, 1, 2)
    assert suspicion.survived() == 0
    assert list(suspicion.crashed) == [0]


def test_too_many_crashes_in_a_shard_are_no_images_fault():
    suspicion = Suspicion(Shard(0, 0, 64))
    searched(suspicion, lambda found: bool(set(found) & set(range(MOST_CRASHED))))
    assert not suspicion.is_hopeless
    searched(suspicion, lambda found: bool(set(found) & {40}))
    assert suspicion.is_hopeless


def test_crashed_rows_count_from_the_beginning_of_a_batch():
    crashed = {100: "a", 107: "b", 108: "c", 115: "d", 116: "e"}
    assert positions(crashed, 100, range(8, 16)) == {0: "c", 7: "d"}
    assert positions(crashed, 108, range(8)) == {0: "c", 7: "d"}


def test_crashed_images_are_not_touched_and_keep_their_places(job_of, image_folder, tmp_path):
    job = job_of(read_folder(Location(str(image_folder))), tmp_path / "run", {"img_size": 64})
    rows, preprocessing = read_rows(job.rows, 0, 6), job.model.preprocessing
    want = load_batch(rows, job.reading, preprocessing)
    uris = pa.array(["/dev/full", *rows["uri"].to_pylist()[1:5], "/dev/full"])
    bad = rows.set_column(rows.column_names.index("uri"), "uri", uris)
    got = load_batch(bad, job.reading, preprocessing, {0: "first", 5: "last"})
    assert [image.status for image in got.images] == ["crashed", *["ok"] * 4, "crashed"]
    assert [got.images[i].error for i in (0, 5)] == ["first", "last"]
    assert got.images[1:5] == want.images[1:5]
    assert got.sizes == [None, *want.sizes[1:5], None]
    np.testing.assert_array_equal(got.crops, want.crops[1:5])
    none = load_batch(rows, job.reading, preprocessing, dict.fromkeys(range(6), "all"))
    assert none.crops.shape == (0, 3, 64, 64)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def poisonous(image_folder: Path) -> type[Replica]:
    """A replica whose process ends at row 31's crop, and whose loading ends at row 39's file.

    Both are the last of their batches, whose first halves are probed, so that little is killed.
    """
    names = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.*g"))
    crop_of, file_of = image_folder / names[31], names[39]

    class PoisonedWorker(ExplainWorker):
        def __init__(self, job: Job) -> None:
            super().__init__(job)
            uris = pa.table({"uri": [str(crop_of)]})
            self.poison = load_batch(uris, job.reading, job.model.preprocessing).crops[0]

        def compute(self, crops: torch.Tensor, labels: torch.Tensor | None) -> Explanation:
            if (crops.numpy() == self.poison).all((1, 2, 3)).any():
                die()
            return super().compute(crops, labels)

    def poisoned_load(
        rows: pa.Table,
        reading: Reading,
        preprocessing: Preprocessing,
        crashed: Mapping[int, str] | None = None,
    ) -> Batch:
        touched = [u for i, u in enumerate(rows["uri"].to_pylist()) if i not in (crashed or {})]
        if any(uri.endswith(file_of) for uri in touched):
            die()
        return load_batch(rows, reading, preprocessing, crashed)

    class Poisoned(Replica):
        def __init__(self, job: Job, loader_cpus: float, ahead: int) -> None:
            super().__init__(job, loader_cpus, ahead)
            self.worker = PoisonedWorker(job)
            self.feed.load = ray.remote(num_cpus=loader_cpus)(poisoned_load)

    return Poisoned


@pytest.mark.slow
def test_poisonous_images_get_a_row_and_all_their_neighbours_are_explained(
    config, finished, poisonous, rows_of
):
    tolerant = replace(config, execution=replace(config.execution, max_failed=0.1))
    console = Console(file=io.StringIO(), width=200)
    code = explain(tolerant, console, poisonous)
    told = console.file.getvalue()
    assert code is Exit.COMPLETE, told
    got, want = rows_of(Location(config.out)), rows_of(Location(finished.out))
    assert [row["row"] for row in got] == list(range(60))
    crashed = {row["row"]: row["error"] for row in got if row["status"] != "ok"}
    assert crashed == {
        31: "ends the work on it, alone too: replica died",
        39: "ends the work on it, alone too: loading task died",
    }
    assert {row["status"] for row in got} == {"ok", "crashed"}
    for mine, other in zip(got, want, strict=True):
        assert (mine["image_id"], mine["label"]) == (other["image_id"], other["label"])
        if mine["status"] == "ok":
            assert mine["target"] == other["target"]
            np.testing.assert_allclose(mine["saliency"], other["saliency"], atol=2e-3)
    for row in crashed:
        assert f"row {row} of the manifest ends the work on it" in told
    run = open_run(Location(config.out))
    assert run.read_summary()["statuses"] == {"crashed": 2, "ok": 58}
    assert run.root.child("breadcrumbs").names() == []
