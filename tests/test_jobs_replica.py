"""A replica begins the next shard while it writes one, and no row depends on that."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from explainer import Explanation
from jobs.loader import load_batch
from jobs.plan import Shard
from jobs.replica import Replica
from jobs.worker import Begun, ExplainWorker, Job, ShardReport
from storage.locations import Location
from storage.manifests import read_folder
from storage.row_reader import read_rows

ARGUMENTS = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
FIRST, SECOND, THIRD = (Shard(index, 16 * index, 16 * index + 16) for index in range(3))


def until(condition: Callable[[], bool]) -> bool:
    """Whether it holds within half a minute, in which loading processes start too."""
    ends = time.monotonic() + 30
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def job(job_of, image_folder: Path, tmp_path: Path) -> Job:
    return job_of(read_folder(Location(str(image_folder))), tmp_path / "run", ARGUMENTS)


@pytest.fixture
def replica(job: Job, ray_address: str) -> Iterator[Replica]:
    """One in this process, whose log is left as it was."""
    logger = logging.getLogger("saliency")
    before = (logger.handlers[:], logger.level, logger.propagate)
    made = Replica(job, 1.0, 2)
    assert not made.is_ahead  # on a CPU
    made.is_ahead = True
    yield made
    made.rows.close()
    logger.handlers[:], _, logger.propagate = before
    logger.setLevel(before[1])


def plain(job: Job, shard: Shard) -> pa.Table:
    """A shard's rows, one batch after the other and nothing else at work."""
    worker, rows = ExplainWorker(job), read_rows(job.rows, shard.start, shard.stop)
    starts = range(0, len(rows), job.batch_size)
    tables = [rows.slice(start, job.batch_size) for start in starts]
    loaded = [load_batch(table, job.reading, job.model.preprocessing) for table in tables]
    return worker.table(worker.begin(shard, rows, loaded))


def stored(job: Job, shard: Shard) -> pa.Table:
    return job.run.read_part(shard.index).replace_schema_metadata(None)


class SlowlyWriting(ExplainWorker):
    """Takes half a minute to publish, unless the next shard is explained sooner."""

    def publish(self, begun: Begun) -> ShardReport:
        report = super().publish(begun)
        if begun.shard == FIRST:
            assert until(lambda: self.explained_images == self.wanted)
        return report

    explained_images, wanted = 0, 28

    def compute(self, crops: torch.Tensor, labels: torch.Tensor | None) -> Explanation:
        self.explained_images += len(crops)
        return super().compute(crops, labels)


def test_the_next_shard_is_explained_before_it_is_asked_for(job, replica):
    replica.worker = SlowlyWriting(job)
    assert replica.explain(FIRST, SECOND).created
    spent = replica.in_work[SECOND].begun.seconds
    assert spent["compute"] > 0
    assert spent["write"] == 0
    assert len(replica.in_work[SECOND].explained) == 3  # of its four batches
    assert job.run.committed() == {FIRST.index}
    assert replica.explain(SECOND, THIRD).created
    assert replica.explain(THIRD, None).created
    assert not replica.in_work
    for shard in (FIRST, SECOND, THIRD):
        assert stored(job, shard).equals(plain(job, shard).replace_schema_metadata(None))


def test_a_cpu_explains_nothing_of_the_next_shard_meanwhile(job, replica):
    replica.is_ahead = False
    replica.explain(FIRST, SECOND)
    assert len(replica.in_work[SECOND].explained) == 0
    assert len(replica.feed.loading) == 2
    assert replica.explain(SECOND, None).created
    assert stored(job, SECOND).equals(plain(job, SECOND).replace_schema_metadata(None))


def test_of_the_next_shard_only_so_much_is_explained_ahead(job, replica, monkeypatch):
    monkeypatch.setattr("jobs.replica.ROWS_AT_ONCE", 2 * job.batch_size)
    replica.worker = slow = SlowlyWriting(job)
    slow.wanted = 16 + 2 * job.batch_size
    assert replica.explain(FIRST, SECOND).created
    assert len(replica.in_work[SECOND].explained) == 2
    assert replica.explain(SECOND, None).created
    assert stored(job, SECOND).equals(plain(job, SECOND).replace_schema_metadata(None))


def test_a_shard_that_went_elsewhere_is_left_and_may_come_back(job, replica):
    replica.explain(FIRST, SECOND)
    assert replica.explain(THIRD, SECOND).created
    assert list(replica.in_work) == [SECOND]
    assert replica.explain(SECOND, None).created
    for shard in (SECOND, THIRD):
        assert stored(job, shard).equals(plain(job, shard).replace_schema_metadata(None))


@pytest.mark.parametrize("carefully", [False, True])
def test_what_was_begun_is_left_where_rows_are_done_one_by_one(job, replica, carefully):
    replica.explain(FIRST, SECOND)
    if carefully:
        assert replica.explain_carefully(THIRD, {}).created
    else:
        replica.probe(THIRD, {})
    assert not replica.in_work
    assert not replica.feed.loading
    assert not replica.feed.wanted
    assert replica.explain(SECOND, None).created
    assert stored(job, SECOND).equals(plain(job, SECOND).replace_schema_metadata(None))


class FailsOnce(ExplainWorker):
    """Meets an error at the crops it was told of, once."""

    bad: np.ndarray | None = None

    def compute(self, crops: torch.Tensor, labels: torch.Tensor | None) -> Explanation:
        if self.bad is not None and np.array_equal(crops.numpy()[0], self.bad):
            self.bad = None
            raise RuntimeError("a kernel failed")
        return super().compute(crops, labels)


@pytest.mark.parametrize("failing", [FIRST, SECOND])
def test_an_error_belongs_to_the_shard_that_met_it_and_is_not_remembered(job, replica, failing):
    worker = FailsOnce(job)
    bad = read_rows(job.rows, failing.start + 4, failing.start + 5)
    worker.bad = load_batch(bad, job.reading, job.model.preprocessing).crops[0]
    replica.worker = worker
    for shard, upcoming in ((FIRST, SECOND), (SECOND, None)):
        if shard == failing:
            with pytest.raises(RuntimeError, match="a kernel failed"):
                replica.explain(shard, upcoming)
        else:
            assert replica.explain(shard, upcoming).created
    assert worker.bad is None
    assert replica.explain(failing, None).created
    for shard in (FIRST, SECOND):
        assert stored(job, shard).equals(plain(job, shard).replace_schema_metadata(None))
