"""Which images an audit looks at: the same however the run is cut, and evenly over classes."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from explainer.audit.interventions import Images
from jobs.audit_plan import (
    Candidates,
    Recipients,
    class_images,
    of_part,
    random_order,
    recipients,
)
from jobs.audit_worker import LoadedRecipients


def part(rows: int, seed: int = 0) -> pa.Table:
    """Rows of a run of five classes: some without a label, some failed, some wrong."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, rows).astype(float)
    predicted = np.where(random.random(rows) < 0.7, labels, random.integers(0, 5, rows))
    labels[random.random(rows) < 0.1] = np.nan
    ok = random.random(rows) < 0.9
    return pa.table(
        {
            "row": np.arange(rows),
            "status": np.where(ok, "ok", "missing"),
            "label": pa.array(labels, pa.int32(), from_pandas=True),
            "predicted": pa.array(np.where(ok, predicted, np.nan), pa.int32(), from_pandas=True),
            "target": pa.array(np.where(ok, predicted, np.nan), pa.int32(), from_pandas=True),
        }
    )


def test_a_class_is_the_label_and_without_one_the_prediction():
    table = part(400)
    found = of_part(table, seed=0)
    want = {
        row["row"]: row["predicted"] if row["label"] is None else row["label"]
        for row in table.to_pylist()
        if row["status"] == "ok"
    }
    assert dict(zip(found.rows.tolist(), found.classes.tolist(), strict=True)) == want
    right = {r["row"] for r in table.to_pylist() if r["predicted"] == want.get(r["row"], -1)}
    assert set(found.rows[found.explained].tolist()) == right


def test_of_many_targets_one_that_is_the_class_is_enough():
    rows = {"row": [0, 0, 1, 1], "status": ["ok"] * 4, "label": [2, 2, 2, 2]}
    table = pa.table(rows | {"predicted": [2, 2, 1, 1], "target": [2, 1, 1, 2]})
    found = of_part(table, seed=0)
    assert found.rows.tolist() == [0, 1]
    assert found.explained.tolist() == [True, False]


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_the_sample_does_not_depend_on_how_the_run_is_cut(cut):
    table = part(300)
    whole = of_part(table, seed=3).first(20)
    pieces = [of_part(table.slice(start, cut), seed=3) for start in range(0, 300, cut)]
    joined = pieces[0].first(20)
    for piece in pieces[1:]:
        joined = Candidates.joined([joined, piece.first(20)]).first(20)
    assert sorted(joined.rows) == sorted(whole.rows)
    assert np.bincount(whole.classes).max() == 20
    assert sorted(of_part(table, seed=4).first(20).rows) != sorted(whole.rows)


def test_halves_are_even_among_right_and_wrong_alike():
    for images in class_images(of_part(part(800), seed=0)):
        assert (np.diff(images.rows) > 0).all()
        for group in (images.explained, ~images.explained):
            assert abs(2 * int(images.discovery[group].sum()) - int(group.sum())) <= 1


def test_recipients_are_right_and_spread_over_the_classes():
    found = of_part(part(4000), seed=0)
    chosen = recipients(found)
    assert len(chosen.rows) == 128
    right = dict(zip(found.rows[found.explained], found.classes[found.explained], strict=True))
    assert all(right[row] == of for row, of in zip(chosen.rows, chosen.classes, strict=True))
    counts = np.bincount(chosen.classes)
    assert counts.max() - counts.min() <= 1


def test_of_the_recipients_some_are_left_that_are_no_rivals():
    found = of_part(part(800), seed=0)
    pool = loaded(recipients(found))
    for images in class_images(found):
        apart = pool.apart_from(loaded(images.rivals))
        assert set(apart.classes.tolist()) == set(pool.rows) - set(images.rivals.rows)
        assert 0 < len(apart) < len(pool.rows)


def loaded(chosen: Recipients) -> LoadedRecipients:
    """Without pixels; each has its row for a class, to be known by."""
    crops = torch.empty(len(chosen.rows), 3, 0, 0, dtype=torch.uint8)
    return LoadedRecipients(Images(crops, torch.from_numpy(chosen.rows)), chosen.rows)


def test_the_random_order_is_of_the_row_and_the_seed_alone():
    rows = np.arange(10_000)
    order = random_order(rows, 0)
    assert (random_order(rows[::-1], 0)[::-1] == order).all()
    assert len(set(order.tolist())) == len(rows)
    assert abs(np.corrcoef(order.astype(float), random_order(rows, 1).astype(float))[0, 1]) < 0.05
    halves = order.astype(float) < 2**63
    assert abs(halves.mean() - 0.5) < 0.02
