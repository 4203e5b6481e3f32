"""Class heatmaps equal a slow re-implementation over the rows, whatever the cut into parts."""

from collections import defaultdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.aggregate import LEAST_PARTS_OF_A_TASK, aggregate, class_heatmaps, read_means
from jobs.cluster import in_order
from jobs.heatmaps import png, terminal
from jobs.sums import Ranges
from storage import schema
from storage.locations import Location, StorageUnavailable
from storage.runs import Run, open_or_create

GRID = (3, 4)


def rows(count: int) -> list[dict]:
    """Explained rows of three classes, some with a label, and every seventh row a failed one."""
    random = np.random.default_rng(0)
    made = []
    for row in range(count):
        common = {"run": "r", "row": row, "image_id": str(row)}
        if row % 7 == 6:
            made.append(common | {"status": "missing", "error": "gone"})
            continue
        target = int(random.integers(3))
        low = float(np.float32(random.normal()))
        made.append(
            common
            | {
                "status": "ok",
                "label": None if row % 5 == 0 else int(random.integers(3)),
                "predicted": target,
                "target": target,
                "target_name": f"class {target}",
                "target_kind": "predicted",
                "target_rank": 0,
                "saliency": random.random(12).astype(np.float16),
                "score_min": low,
                "score_max": low + float(np.float32(random.random())),
            }
        )
    return made


def publish(run: Run, made: list[dict], size: int) -> int:
    parts = [made[i : i + size] for i in range(0, len(made), size)]
    for index, part in enumerate(parts):
        table = pa.Table.from_pylist(part, schema=schema.explanations(GRID))
        run.publish(index, schema.encode_parquet(table, {}))
    return len(parts)


@pytest.fixture
def run(tmp_path) -> Run:
    return open_or_create(Location(str(tmp_path)), {"fingerprint_of": {"a": 1}})


@pytest.mark.parametrize("size", [5, 64, 200])
def test_class_heatmaps_equal_a_slow_reimplementation(run, size):
    made = rows(200)
    parts = publish(run, made, size)
    result = aggregate(run, range(parts), GRID)
    got = {(r["target"], r["group"]): r for r in class_heatmaps(result, GRID).to_pylist()}

    groups = defaultdict(list)
    for row in made:
        if row["status"] != "ok":
            continue
        groups[row["target"], "all"].append(row)
        if row["label"] is not None:
            right = "correct" if row["label"] == row["predicted"] else "incorrect"
            groups[row["target"], right].append(row)
    assert set(got) == set(groups)
    for key, members in groups.items():
        maps = np.array([m["saliency"] for m in members], dtype=np.float64)
        low = np.array([m["score_min"] for m in members], dtype=np.float32)[:, None]
        high = np.array([m["score_max"] for m in members], dtype=np.float32)[:, None]
        assert got[key]["count"] == len(members)
        np.testing.assert_allclose(got[key]["mean"], maps.mean(0), rtol=1e-6)
        np.testing.assert_allclose(got[key]["std"], maps.std(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(
            got[key]["mean_score"], (low + maps * (high - low)).mean(0), rtol=1e-5, atol=1e-6
        )
        assert got[key]["median_range"] == pytest.approx(np.median(high - low), rel=5e-4)
    assert result.images == 200
    assert dict(result.statuses) == {"ok": 172, "missing": 28}


def test_tasks_of_a_cluster_sum_to_the_same_bytes(run, ray_address):
    parts = range(publish(run, rows(200), 3))
    assert len(parts) > 3 * LEAST_PARTS_OF_A_TASK
    here, there = (aggregate(run, parts, GRID, each) for each in (map, in_order))
    encoded = [schema.encode_parquet(class_heatmaps(each, GRID), {}) for each in (here, there)]
    assert encoded[0] == encoded[1]
    assert here.digest == there.digest
    assert here.statuses == there.statuses
    assert here.images == there.images == 200


def test_a_store_that_fails_a_task_is_told_apart_from_a_bug(run, ray_address):
    publish(run, rows(20), 5)
    run.part(2).delete()
    Path(run.part(2).url).symlink_to("/proc/self/mem")  # it opens, and no byte of it can be read
    with pytest.raises(StorageUnavailable, match="part-00000002"):
        aggregate(run, range(4), GRID, in_order)


@pytest.mark.parametrize("count", [1, 2, 1001, 200_000])
def test_the_median_of_ranges_is_numpys_in_bounded_memory(count):
    random = np.random.default_rng(0)
    numbers = random.lognormal(0, 2, count).astype(np.float32)
    ranges = Ranges.of(numbers[:0])
    for start in range(0, count, 777):
        ranges = ranges + Ranges.of(numbers[start : start + 777])
    assert ranges.median == pytest.approx(np.median(numbers), rel=5e-4)
    octaves = np.log2(numbers.max() / numbers.min()) + 1
    assert len(ranges.bins) <= 2 * 1024 * octaves + 777


def test_ranges_of_constant_maps_are_exactly_zero():
    assert Ranges.of(np.zeros(3, np.float32)).median == 0
    assert Ranges.of(np.array([0, 0, 1, 3], np.float32)).median == 0.5


def test_the_digest_is_of_the_parts_in_order(run):
    parts = publish(run, rows(50), 16)
    result = aggregate(run, range(parts), GRID)
    digests = [run.read_part(i).schema.metadata[b"content_digest"] for i in range(parts)]
    assert result.digest == sha256(b"".join(digests)).hexdigest()


def test_a_run_without_a_single_map_aggregates_to_nothing(run):
    publish(run, [row for row in rows(50) if row["status"] != "ok"], 16)
    result = aggregate(run, range(1), GRID)
    assert class_heatmaps(result, GRID).num_rows == 0
    assert result.statuses["missing"] == result.images == 7


def test_images_with_several_targets_count_once(run):
    made = []
    for row in rows(20):
        targets = 3 if row["status"] == "ok" else 1
        made += [
            row | ({"target_rank": r, "target": r} if targets == 3 else {}) for r in range(targets)
        ]
    publish(run, made, 1000)
    result = aggregate(run, range(1), GRID)
    assert result.images == 20
    assert sum(h.count for h in read_means(class_heatmaps(result, GRID))) == 3 * 18


def test_pictures_of_a_heatmap():
    mean = np.linspace(0, 1, 12).reshape(GRID)
    picture = png(mean, "a <class> named / at length, " * 3, 7)
    assert picture.startswith(b"\x89PNG")
    lines = terminal(mean).plain.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("  ")
    assert lines[-1].endswith("██")
    assert set(terminal(np.ones(GRID)).plain) == {" ", "\n"}
