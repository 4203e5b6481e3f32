"""Which rows of a list are selected: by condition, class, novelty, sample and number."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.locations import Location
from storage.manifests import ManifestError, NothingNew, read_folder, read_manifest
from storage.row_reader import read_rows
from storage.selection import Condition, Selection

ROWS = 600


@pytest.fixture
def listed(tmp_path: Path) -> Location:
    """A list of 600 rows with more columns than the manifest's."""
    numbers = range(ROWS)
    table = pa.table(
        {
            "uri": [f"/{i}.jpg" for i in numbers],
            "label": pa.array([f"c{i % 3}" for i in numbers]).dictionary_encode(),
            "width": pa.array([None if i == 5 else i for i in numbers], pa.int16()),
            "meta": [{"year": 2000 + i % 2} for i in numbers],
            "z": [0.5] * ROWS,
        }
    )
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=100)
    return Location(str(tmp_path / "m.parquet"))


def selected(listed: Location, selection: Selection) -> list[int]:
    """The numbers of the rows that are explained, in their order."""
    manifest = read_manifest(listed, selection=selection)
    stored = listed.parent.child("stored")
    stored.replace(manifest.data or b"")
    uris = read_rows(manifest.source(stored), 0, manifest.rows)["uri"].to_pylist()
    return [int(uri[1:-4]) for uri in uris]


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("width < 4", [0, 1, 2, 3]),
        ("width < 6 AND label = 'c2'", [2]),
        ("width between 4 and 6", [4, 6]),
        ("width is null", [5]),
        ("meta.year = 2001 and width < 4", [1, 3]),
        ("uri LIKE '/59_.jpg' -- the last ten", list(range(590, 600))),
        ("image_id = '/7.jpg'", [7]),
    ],
)
def test_a_condition_may_name_any_column(listed: Location, where: str, wanted: list[int]) -> None:
    if "image_id" in where:
        with pytest.raises(ManifestError, match="image_id"):
            selected(listed, Selection(where=where))
        return
    assert selected(listed, Selection(where=where)) == wanted


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("width <", r"--where 'width <' is no SQL condition: .*syntax error"),
        ("nothing = 1", r'Referenced column "nothing" not found'),
        ("width > (SELECT avg(width) FROM manifest)", "a condition is on one row, so it holds no"),
        ("true) UNION SELECT 999 WHERE (true", "a condition is on one row, so it holds no"),
        ("true) UNION SELECT row FROM names WHERE (true", "so it holds no SELECT"),
        ("true) ORDER BY (uri", "so it holds no SELECT"),
        ("true) LIMIT (1", "so it holds no SELECT"),
        ("true) USING SAMPLE (1", "so it holds no SELECT"),
        ("true) GROUP BY (__row", "so it holds no SELECT"),
        ("true); SELECT (1", "so it holds no SELECT"),
        ("1 + " * 900 + "1", "is nested too deeply"),
        ("max(width) > 1", "WHERE clause cannot contain aggregates"),
        ("label = 3", "Could not convert string 'c0' to INT32"),
        ("width > 10000", "no row is left by --where, --classes and the like"),
    ],
)
def test_what_is_no_condition_is_refused(listed: Location, where: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        selected(listed, Selection(where=where))


def test_a_condition_on_a_type_that_duckdb_has_not_is_refused() -> None:
    table = pa.table({"uri": ["/a.jpg"], "width": pa.array([1.0], pa.float16())})
    with pytest.raises(ValueError, match=r"--where 'width > 0': .*Unsupported Internal Arrow Type"):
        Condition("width > 0").rows(table)


def test_a_condition_reads_no_files(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for where in (f"1 IN (FROM '{tmp_path}/secret.csv')", f"read_text('{tmp_path}/x') IS NULL"):
        with pytest.raises(ValueError, match="--where"):
            Condition(where).rows(pa.table({"uri": ["a"]}))


def test_classes_are_labels_and_all_must_occur(listed: Location, tmp_path: Path) -> None:
    assert selected(listed, Selection(classes=("c2", "c0"), limit=4)) == [0, 2, 3, 5]
    with pytest.raises(ManifestError, match=r"no row has the label c7; there are c0, c1, c2$"):
        selected(listed, Selection(classes=("c1", "c7")))
    (tmp_path / "n.csv").write_text("uri,label\n/0.jpg,3\n/1.jpg,4\n")
    numbered = Location(str(tmp_path / "n.csv"))
    manifest = read_manifest(numbered, selection=Selection(classes=("4",)))
    assert manifest.labels == {4: 1}


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order(listed: Location) -> None:
    first = selected(listed, Selection(sample=100, seed=1))
    assert len(set(first)) == 100
    assert first == sorted(first)
    assert selected(listed, Selection(sample=100, seed=1)) == first
    other = selected(listed, Selection(sample=100, seed=2))
    assert 5 <= len(set(first) & set(other)) <= 40  # 17 are expected
    assert 200 < sum(first) / len(first) < 400
    assert set(selected(listed, Selection(sample=50, seed=1))) < set(first)
    assert selected(listed, Selection(sample=10_000)) == list(range(ROWS))
    of_class = selected(listed, Selection(classes=("c1",), sample=10, limit=3))
    assert len(of_class) == 3
    assert {number % 3 for number in of_class} == {1}


def test_a_sample_of_many_tables_is_thinned_out_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[int]:
        tables = (pa.table({"n": range(i, i + 10)}) for i in range(0, ROWS, 10))
        (kept,) = Selection(sample=25, seed=3).of(tables)
        return kept["n"].to_pylist()

    want = drawn()
    monkeypatch.setattr("storage.selection._SLACK", 7)
    assert drawn() == want
    assert len(want) == 25


def test_the_first_rows_need_no_others(listed: Location) -> None:
    assert selected(listed, Selection(limit=3)) == [0, 1, 2]
    assert selected(listed, Selection(where="width > 250", limit=2)) == [251, 252]


def test_only_new_rows_remain_where_some_are_known(listed: Location) -> None:
    known = pa.array([f"/{i}.jpg" for i in range(10, ROWS)])
    assert selected(listed, Selection(known=known)) == list(range(10))
    assert selected(listed, Selection(known=known, where="width > 7")) == [8, 9]
    everything = pa.array([f"/{i}.jpg" for i in range(ROWS)])
    with pytest.raises(NothingNew, match="holds no image that the run to extend does not have"):
        selected(listed, Selection(known=everything))


def test_a_folder_is_selected_from_too(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    place = Location(str(tmp_path))
    assert read_folder(place, Selection(classes=("dog",))).labels == {"dog": 1}
    assert read_folder(place, Selection(where="uri LIKE '%2.jpg'")).labels == {"cat": 1}
    assert read_folder(place, Selection(limit=2)).labels == {"cat": 2}
    with pytest.raises(ManifestError, match="no row has the label cow; there are cat, dog"):
        read_folder(place, Selection(classes=("cow",)))
