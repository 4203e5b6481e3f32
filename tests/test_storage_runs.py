"""The run directory: made once, resumed by the same settings only, complete by its parts."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from storage.locations import Location
from storage.runs import (
    FingerprintMismatch,
    fingerprint,
    open_or_create,
    open_run,
    part_name,
    read_description,
)
from storage.schema import encode_parquet, explanations


def description(**model: Any) -> dict[str, Any]:
    of = {"model": {"name": "vit", "block": -2, **model}, "targets": ["predicted"]}
    return {"fingerprint_of": of, "shard_size": 16, "rows": 40, "grid": [14, 14]}


def test_a_run_is_created_and_then_resumed_with_its_own_description(location: Location) -> None:
    assert read_description(location) is None
    run = open_or_create(location, description())
    assert run.description["fingerprint"] == fingerprint(description()["fingerprint_of"])
    assert run.description["schema_version"] == 1
    text = location.child("run.json").read().decode()
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    again = open_or_create(location, {**description(), "shard_size": 99})
    assert again.description == run.description == open_run(location).description
    assert location.child("run.json").read().decode() == text


def test_another_run_s_directory_is_refused_with_the_difference(location: Location) -> None:
    open_or_create(location, description())
    with pytest.raises(FingerprintMismatch) as caught:
        open_or_create(location, description(block=-1, head="probe", name="vit"))
    assert str(caught.value).splitlines() == [
        f"{location} holds a run with other settings:",
        "  model.block: run has -2, this command has -1",
        '  model.head: run has nothing, this command has "probe"',
        "Use another --out, or the run's own settings.",
    ]


def test_of_two_drivers_one_makes_the_run(location: Location) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda n: open_or_create(location, {**description(), "n": n}), "abcd"))
    assert len({run.description["n"] for run in runs}) == 1


def test_what_is_no_run_is_not_opened(location: Location) -> None:
    with pytest.raises(ValueError, match=r"holds no run \(no run\.json\)"):
        open_run(location)
    location.child("something.txt").create(b"other things may lie there")
    open_or_create(location, description())
    location.child("run.json").replace(b"{torn")
    with pytest.raises(ValueError, match=r"run\.json is no JSON"):
        open_run(location)
    location.child("run.json").replace(b'{"a": 1}')
    with pytest.raises(ValueError, match="no fingerprint_of"):
        open_or_create(location, description())


def test_attempts_are_numbered_even_in_a_race(location: Location) -> None:
    run = open_or_create(location, description())
    assert run.begin_attempt({"host": "first"}) == 1
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda n: run.begin_attempt({"host": n}), "abcd"))
    assert sorted(numbers) == [2, 3, 4, 5]
    for number, host in zip(numbers, "abcd", strict=True):
        stored = location.child("attempts", f"{number}.json").read()
        assert json.loads(stored) == {"host": host}


def test_committed_are_the_parts_and_nothing_else(location: Location) -> None:
    run = open_or_create(location, description())
    assert run.committed() == set()
    assert part_name(42) == "explanations/part-00000042.parquet"
    assert run.publish(42, b"mine") is True
    assert run.publish(42, b"a slower replica's") is False
    assert run.publish(0, b"x") is True
    assert run.publish(123_456_789, b"x") is True
    foreign = ["part-00000001.parquet.tmp", "part-1.parquet", "notes", ".part-00000002.parquet"]
    for name in (*foreign, "xpart-00000003.parquet", "old/part-00000004.parquet"):
        location.child("explanations", name).create(b"x")
    assert run.committed() == {0, 42, 123_456_789}
    assert run.part(42).read() == b"mine"


def test_summaries_are_replaced(location: Location) -> None:
    run = open_or_create(location, description())
    assert run.read_summary() is None
    run.write_summary({"state": "running"})
    run.write_summary({"state": "complete", "counts": {"ok": 3}})
    assert run.read_summary() == {"state": "complete", "counts": {"ok": 3}}


def test_any_class_name_is_a_file_name_of_its_own(location: Location) -> None:
    run = open_or_create(location, description())
    names = ["tench, Tinca tinca", "a/b", "a%2Fb", "..", "", "ü" * 300, "ü" * 301, "A b"]
    places = [run.class_heatmap_picture(name) for name in names]
    for place in places:
        assert place.create(b"png")
    found = location.child("class_heatmaps").names()
    assert len(found) == len(names)
    assert "tench, Tinca tinca.png" in found


def test_a_fingerprint_does_not_hang_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_part_is_read_back_whole_or_by_column(location: Location) -> None:
    run = open_or_create(location, description())
    assert run.id == run.description["fingerprint"][:16]
    rows = [{"run": run.id, "row": n, "image_id": f"{n}", "status": "missing"} for n in range(3)]
    table = pa.Table.from_pylist(rows, schema=explanations((2, 2)))
    run.publish(7, encode_parquet(table, {"device": "cpu"}))
    part = run.read_part(7)
    assert part.equals(table)
    assert part.schema.metadata[b"device"] == b"cpu"
    assert run.read_part(7, ["row"]).to_pydict() == {"row": [0, 1, 2]}
    with pytest.raises(FileNotFoundError, match=r"part-00000008\.parquet"):
        run.read_part(8)
