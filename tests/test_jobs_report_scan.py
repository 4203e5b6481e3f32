"""One pass over a run's rows: agreement, exemplars, confusion, failures, however it is cut."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.export import synthetic
from benchmarks.report_run import make_run
from jobs.report_classes import Classes, mean_maps
from jobs.report_scan import EXEMPLARS, OfClass, Scan, Shown, agreements, scan, scan_table
from storage.locations import Location

GRID = (14, 14)
NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(Location(str(tmp_path_factory.mktemp("run") / "run")), NAMES, 20, 1)


@pytest.fixture(scope="module")
def table(run):
    return run.read_part(0)


@pytest.fixture(scope="module")
def means(run):
    return mean_maps(run.read_class_heatmaps())


def test_agreement_is_the_correlation_with_the_classs_mean(table, means):
    explained = table.filter(pa.compute.equal(table["status"], "ok"))
    maps = np.array(explained["saliency"].to_pylist(), np.float32)
    targets = explained["target"].to_numpy()
    found = agreements(maps, targets, means)
    slow = [np.corrcoef(m, means[t])[0, 1] for m, t in zip(maps, targets, strict=True)]
    assert found == pytest.approx(slow)


def test_a_map_that_is_constant_agrees_with_nothing():
    maps = np.stack([np.zeros(4), np.arange(4)])
    assert agreements(maps, np.array([0, 0]), {0: np.arange(4)}) == pytest.approx([0, 1])
    assert agreements(maps, np.array([1, 1]), {1: np.ones(4)}) == pytest.approx([0, 0])
    assert agreements(maps, np.array([2, 2]), {1: np.arange(4)}) == pytest.approx([0, 0])


def test_however_the_rows_are_cut_the_scan_is_the_same(table, means, run):
    whole = scan_table(table, GRID, means, {(3, 0), (40, 1)})
    cut = Scan()
    for start in range(0, len(table), 7):
        cut.add(scan_table(table.slice(start, 7), GRID, means, {(3, 0), (40, 1)}))
    read = scan(run, GRID, means, {(3, 0), (40, 1)})
    for other in (cut, read):
        assert other.pairs == whole.pairs
        assert other.names == whole.names
        assert other.failures == whole.failures
        assert other.wanted.keys() == whole.wanted.keys()
        for target, of_class in whole.classes.items():
            assert other.classes[target].maps == of_class.maps
            assert other.classes[target].sums == pytest.approx(of_class.sums)
            for side in ("most", "least"):
                found, expected = (
                    [image.row for image in getattr(each.classes[target], side)]
                    for each in (other, whole)
                )
                assert found == expected


def test_exemplars_are_those_of_the_largest_and_the_smallest_agreement(table, means):
    found = scan_table(table, GRID, means, set())
    explained = table.filter(pa.compute.equal(table["status"], "ok"))
    maps = np.array(explained["saliency"].to_pylist(), np.float32)
    targets, rows = (explained[name].to_numpy() for name in ("target", "row"))
    agreement = agreements(maps, targets, means)
    for target, of_class in found.classes.items():
        own = sorted(
            (a, r) for a, r, t in zip(agreement, rows, targets, strict=True) if t == target
        )
        assert {i.row for i in of_class.least} == {r for _, r in own[:EXEMPLARS]}
        assert {i.row for i in of_class.most} == {r for _, r in own[-EXEMPLARS:]}
        assert of_class.most[0].agreement == pytest.approx(own[-1][0])
        assert of_class.means["agreement"] == pytest.approx(np.mean([a for a, _ in own]))


def test_confusion_adds_up_to_the_rows(run, table, means):
    classes = Classes(run.read_class_heatmaps(), GRID, scan(run, GRID, means, set()))
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    views = {view.name: view for view in classes.views()}
    assert set(views) == set(NAMES)
    for index, name in enumerate(NAMES):
        labelled = [row for row in rows if row["label"] == index]
        assert views[name].images == len(labelled)
        assert views[name].right == sum(row["predicted"] == index for row in labelled)
        wrong = [row["predicted_name"] for row in labelled if row["predicted"] != index]
        assert dict(views[name].taken_for) == {n: wrong.count(n) for n in set(wrong)}
        strangers = [r["label_name"] for r in rows if r["predicted"] == index != r["label"]]
        assert dict(views[name].taken_from) == {n: strangers.count(n) for n in set(strangers)}
    right, known = classes.accuracy
    assert (right, known) == (sum(r["label"] == r["predicted"] for r in rows), len(rows))


def test_the_difference_is_to_all_images_of_other_classes(run, table, means):
    classes = Classes(run.read_class_heatmaps(), GRID, scan(run, GRID, means, set()))
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    for view in classes.views():
        own, others = (
            np.mean([r["saliency"] for r in rows if (r["target"] == view.target) is mine], axis=0)
            for mine in (True, False)
        )
        assert view.difference.ravel() == pytest.approx(own - others, abs=1e-4)


def test_failures_are_told_with_their_errors(table, means):
    found = scan_table(table, GRID, means, set())
    assert found.failures == {
        "missing": [("ant/0000000.jpg", "no such object: <img src=x onerror=alert(1)>")]
    }


def test_an_image_with_several_targets_counts_once(run, means):
    table = synthetic(run, range(10), 3)
    second = table.set_column(
        table.schema.get_field_index("target_rank"),
        table.schema.field("target_rank"),
        pa.array(np.ones(10)).cast(pa.int16()),
    )
    both = scan_table(pa.concat_tables([table, second]), GRID, means, set())
    assert sum(both.pairs.values()) == 10
    assert sum(of_class.maps for of_class in both.classes.values()) == 20


def test_the_mean_probability_is_that_of_the_explained_class(table, means):
    explained = table.filter(pa.compute.equal(table["status"], "ok"))
    place = table.schema.get_field_index("target_probability")
    field = table.schema.field(place)
    small = pa.array(np.full(len(table), 0.01, np.float32)).cast(field.type)
    found = scan_table(table.set_column(place, field, small), GRID, means, set())
    assert min(explained["probability"].to_pylist()) > 0.01
    for of_class in found.classes.values():
        assert of_class.means["target_probability"] == pytest.approx(0.01)


@pytest.mark.parametrize(("maps", "most", "least"), [(1, [0], []), (4, [0, 1, 2], [3])])
def test_no_map_is_among_those_that_agree_most_and_least(maps, most, least):
    images = [Shown(i, str(i), None, "a", 0.5, 0, np.zeros(GRID), 1 - i / 9) for i in range(maps)]
    of_class = OfClass(maps, np.zeros(4), images[:EXEMPLARS], images[::-1][:EXEMPLARS])
    shown = of_class.exemplars(EXEMPLARS)
    assert [[image.row for image in group] for group in shown] == [most, least]


def test_of_many_targets_the_first_and_the_one_that_is_asked_for_are_kept(run, means):
    table = synthetic(run, range(3), 3)
    of_image = [table]
    for rank in (1, 2):
        for name, values in (
            ("target", (table["target"].to_numpy() + rank) % 3),
            ("target_rank", np.full(3, rank)),
        ):
            field = table.schema.field(name)
            place = table.schema.get_field_index(name)
            column = pa.array(values).cast(field.type)
            base = of_image[-1] if name == "target_rank" else table
            changed = base.set_column(place, field, column)
            if name == "target":
                of_image.append(changed)
            else:
                of_image[-1] = changed
    first = table["target"].to_pylist()
    asked = (1, (first[1] + 2) % 3)
    found = scan_table(pa.concat_tables(of_image), GRID, means, {asked})
    assert set(found.wanted) == {(1, first[1]), asked}
