"""An export is the run's rows, bit for bit, sorted; resumable, readable, and refused in words."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit
from jobs.export_parquet import carry_out, export, plan_export
from storage import schema
from storage.digests import table_digest
from storage.exports import Layout, entries
from storage.locations import Location
from storage.runs import Run, open_or_create

GRID = (2, 3)
IMAGES, TARGETS, CLASSES = 200, 2, 7
TINY = Layout(file=96, group=16)


def rows() -> list[dict[str, Any]]:
    """Two targets an image; every ninth image failed; class 6 has half of the rows; some NaNs."""
    random = np.random.default_rng(0)
    made = []
    for row in range(IMAGES):
        label = None if row % 5 == 0 else int(random.integers(CLASSES))
        common = {"run": "r", "row": row, "image_id": f"i{row}", "uri": f"/i{row}", "label": label}
        if row % 9 == 8:
            made.append(common | {"status": "missing", "error": "gone"})
            continue
        for rank in range(TARGETS):
            target = CLASSES - 1 if random.random() < 0.5 else int(random.integers(CLASSES))
            values = {
                "status": "ok",
                "predicted": target,
                "target": target,
                "target_name": f"class {target}",
                "target_kind": "top",
                "target_rank": rank,
                "saliency": random.random(6).astype(np.float16),
                "score_min": float("nan") if row % 50 == 0 else float(random.normal()),
            }
            made.append(common | values)
    return made


def whole() -> pa.Table:
    return pa.Table.from_pylist(rows(), schema=schema.explanations(GRID))


def make_run(root: Location) -> Run:
    """A finished run of parts of 37 rows, as `saliency explain` leaves it."""
    description = {"fingerprint_of": {"a": 1}, "grid": list(GRID), "targets_per_image": TARGETS}
    run = open_or_create(root, description)
    table, digests = whole(), b""
    starts = range(0, len(table), 37)
    for index, start in enumerate(starts):
        part = table.slice(start, 37)
        digests += table_digest(part).encode()
        run.publish(index, schema.encode_parquet(part, {"run": run.id, "shard": str(index)}))
    ok = sum(row % 9 != 8 for row in range(IMAGES))
    run.write_summary(
        {
            "state": "complete",
            "rows": IMAGES,
            "statuses": {"missing": IMAGES - ok, "ok": ok},
            "parts": len(starts),
            "parts_digest": sha256(digests).hexdigest(),
        }
    )
    return run


def told(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def run(location: Location) -> Run:
    return make_run(location.child("run"))


@pytest.fixture
def request_of(run: Run, location: Location, tmp_path: Path) -> ExportConfig:
    """The request for a copy of the run beside it, with the store's options in files."""
    options = tmp_path / "options.json"
    options.write_text(json.dumps(location.options))
    return ExportConfig(
        run.root.url,
        location.child("copy").url,
        input_storage=str(options),
        output_storage=str(options),
    )


@pytest.fixture
def local_request(tmp_path: Path) -> ExportConfig:
    run = make_run(Location(str(tmp_path / "run")))
    return ExportConfig(run.root.url, str(tmp_path / "copy"))


def export_in_tiny_files(request: ExportConfig, console: Console, layout: Layout = TINY) -> Exit:
    plan = plan_export(request)
    return carry_out(replace(plan, copy=replace(plan.copy, layout=layout)), console)


def read_all(folder: Location) -> list[pa.Table]:
    return [pq.read_table(io.BytesIO(folder.child(name).read())) for name in folder.names()]


@pytest.mark.parametrize(
    ("sort", "layout"),
    [("target", TINY), ("label", Layout(35, 35)), ("predicted", None)],
    ids=["target", "label", "predicted"],
)
def test_the_copy_has_the_same_rows_bit_for_bit_in_order(
    request_of, location, run, console, sort, layout
):
    request = replace(request_of, sort_by=sort)
    if layout is None:
        assert export(request, console) is Exit.COMPLETE
    else:
        assert export_in_tiny_files(request, console, layout) is Exit.COMPLETE
    tables = read_all(location.child("copy", "explanations"))
    made = rows()

    def place(i: int) -> tuple[bool, int, int, int]:
        key = made[i].get(sort)
        return key is None, key or 0, made[i]["row"], made[i].get("target_rank") or 0

    expected = whole().take(pa.array(sorted(range(len(made)), key=place)))
    assert table_digest(pa.concat_tables(tables)) == table_digest(expected)
    size = len(made) if layout is None else layout.file
    assert [len(t) for t in tables[:-1]] == [size] * (-(-len(made) // size) - 1)
    for table in tables:
        assert table.schema.equals(whole().schema, check_metadata=False)
        assert all(table.schema.field(f.name).metadata == f.metadata for f in whole().schema)
        assert schema.grid_of(table.schema) == GRID
        metadata = table.schema.metadata
        assert metadata[b"run"].decode() == run.id
        assert metadata[b"parts_digest"].decode() == run.read_summary()["parts_digest"]
        assert metadata[b"sorted_by"].decode() == f"{sort}, row, target_rank"
        assert metadata[b"content_digest"].decode() == table_digest(table)
        assert b"shard" not in metadata
    assert json.loads(location.child("copy", "export.json").read())["rows"] == len(made)


def test_it_is_told_what_was_written(request_of, location, run, console):
    export(request_of, console)
    lines = " ".join(told(console).split())
    count = len(rows())
    copied = sum(entries(location.child("copy", "explanations")).values())
    source = sum(entries(run.root.child("explanations")).values())
    parts = -(-count // 37)
    assert f"{count}, sorted by target, row, target_rank" in lines
    assert "1 Parquet files" in lines
    assert f"{copied / count:.0f}; in the run's {parts} parts {source / count:.0f}" in lines


def test_a_complete_export_is_left_alone(request_of, location, console):
    export(request_of, console)
    file = location.child("copy", "explanations", "target-00000.parquet")
    before = file.read()
    file.replace(before + b"touched")
    assert export(request_of, console) is Exit.COMPLETE
    assert "this export is complete; nothing to do" in told(console)
    assert file.read() == before + b"touched"


def test_what_an_interrupted_export_lacks_is_added_and_the_rest_is_kept(
    request_of, location, console
):
    export_in_tiny_files(request_of, console)
    folder = location.child("copy", "explanations")
    complete = {name: folder.child(name).read() for name in folder.names()}
    assert len(complete) == 4
    for name in list(complete)[1:3]:
        folder.child(name).delete()
    location.child("copy", "export.json").delete()
    assert export_in_tiny_files(request_of, console) is Exit.COMPLETE
    assert {name: folder.child(name).read() for name in folder.names()} == complete
    with pytest.raises(ConfigurationError, match=r"rows_per_file: 96 there, \d+ here"):
        export(request_of, console)


SCRIPT = """
import sys
from dataclasses import replace
from rich.console import Console
from jobs.export_parquet import carry_out, plan_export
from jobs.commands import ExportConfig
from storage.exports import Layout
plan = plan_export(ExportConfig(*sys.argv[1:]))
carry_out(replace(plan, copy=replace(plan.copy, layout=Layout(20, 20))), Console())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_midst_the_same_export_does_the_rest(local_request, tmp_path, console, how):
    spill = tmp_path / "spill"
    spill.mkdir()
    folder = Path(local_request.out, "explanations")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, local_request.run, local_request.out],
        env={**os.environ, "TMPDIR": str(spill)},
        cwd=Path(__file__).resolve().parents[1],
    )
    while not folder.exists() or len(list(folder.glob("target-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(how)
    assert process.wait(30) == (143 if how is signal.SIGTERM else -signal.SIGKILL)
    left = len(list(folder.glob("target-*")))
    assert 2 <= left < len(rows()) // 20
    assert not Path(local_request.out, "export.json").exists()
    assert (list(spill.iterdir()) == []) == (how is signal.SIGTERM)

    assert export_in_tiny_files(local_request, console, Layout(20, 20)) is Exit.COMPLETE
    found = pa.concat_tables(read_all(Location(str(folder))))
    assert len(found) == len(rows())
    assert found["target"].to_pylist() == sorted(
        found["target"].to_pylist(), key=lambda target: (target is None, target)
    )


def test_the_spill_is_removed_after_an_error(local_request, tmp_path, console, monkeypatch):
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spill))
    part = Path(local_request.run, "explanations", "part-00000005.parquet")
    part.write_bytes(b"nonsense")
    with pytest.raises(ConfigurationError, match="cannot read a part"):
        export(local_request, console)
    assert list(spill.iterdir()) == []
    assert not Path(local_request.out, "export.json").exists()


def test_three_readers_read_the_copy(local_request, console):
    export_in_tiny_files(local_request, console)
    folder = Path(local_request.out, "explanations")
    wanted = [row for row in rows() if row.get("target") == 3]
    maps = np.array([row["saliency"] for row in wanted], np.float32)
    sql = "SELECT row, target_rank, saliency FROM '{}/*.parquet' WHERE target = 3 ORDER BY 1, 2"
    found = duckdb.sql(sql.format(folder)).fetchall()
    assert found == duckdb.sql(sql.format(Path(local_request.run, "explanations"))).fetchall()
    assert [row[:2] for row in found] == [(row["row"], row["target_rank"]) for row in wanted]
    np.testing.assert_array_equal([row[2] for row in found], maps)
    frame = pd.read_parquet(folder)
    frame = frame[frame.target == 3]
    np.testing.assert_array_equal(np.stack(frame.saliency.to_list()), maps)
    frame = pl.scan_parquet(folder / "*.parquet").filter(pl.col("target") == 3).collect()
    np.testing.assert_array_equal(np.stack(frame["saliency"].to_list()), maps)


def matching_groups(folder: Path, target: int) -> int:
    """Row groups that their statistics do not rule out."""
    column, count = whole().schema.get_field_index("target"), 0
    for path in sorted(folder.glob("*.parquet")):
        footer = pq.read_metadata(path)
        for number in range(footer.num_row_groups):
            found = footer.row_group(number).column(column).statistics
            count += bool(found.has_min_max and found.min <= target <= found.max)
    return count


def test_a_query_for_one_class_skips_all_other_row_groups(local_request, console):
    export_in_tiny_files(local_request, console)
    copy = Path(local_request.out, "explanations")
    parts = Path(local_request.run, "explanations")
    for target in range(CLASSES):
        count = sum(row.get("target") == target for row in rows())
        assert matching_groups(copy, target) <= -(-count // TINY.group) + 1
        assert matching_groups(parts, target) > len(list(parts.iterdir())) * 2 / 3
    files = json.loads(Path(local_request.out, "export.json").read_bytes())["files"]
    for file in files:
        table = pq.read_table(copy / file["name"])
        keys = table["target"].to_pylist()
        assert (file["rows"], file["first"], file["last"]) == (len(table), keys[0], keys[-1])


def refused(request: ExportConfig, console: Console) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        export(request, console)
    return str(caught.value).splitlines()


def test_all_that_is_wrong_with_a_request_is_told_at_once(local_request, tmp_path, console):
    request = ExportConfig(str(tmp_path), "/proc/nothing", output_storage=None)
    run, out = refused(request, console)
    assert run == f"RUN: {tmp_path} holds no run (no run.json): name the --out of " + (
        "`saliency explain`"
    )
    assert out.startswith("--out: cannot write to /proc/nothing: ")
    run, out = refused(replace(request, input_storage="/nowhere", out=""), console)
    assert run.startswith("RUN: /nowhere: ")
    assert out.startswith("--out: a location is a url or a path")


@pytest.mark.parametrize(
    "summary",
    [None, {"state": "running"}, {"state": "incomplete"}, {"state": "failed"}],
)
def test_a_run_that_is_not_finished_is_refused(local_request, console, summary):
    path = Path(local_request.run, "summary.json")
    path.unlink() if summary is None else path.write_text(json.dumps(summary))
    state = "not started" if summary is None else summary["state"]
    (line,) = refused(local_request, console)
    assert line == (
        f"RUN: {local_request.run} is not finished (state: {state}); the `saliency explain` that "
        "made it does the rest"
    )


def test_a_failed_run_whose_every_row_is_written_is_exported(local_request, console):
    path = Path(local_request.run, "summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "failed"}))
    assert export(local_request, console) is Exit.COMPLETE


@pytest.mark.parametrize("inside", ["", "/", "/copy", "/explanations/copy", "/../run/copy"])
def test_a_place_in_the_run_is_refused(local_request, console, inside):
    (line,) = refused(replace(local_request, out=local_request.run + inside), console)
    assert line.startswith("--out: ")
    assert line.endswith(" lies in the run: name a place outside of it")


def test_a_place_that_is_an_object_is_refused(request_of, location, console):
    location.child("copy").create(b"precious")
    (line,) = refused(request_of, console)
    assert line.startswith("--out: ")
    assert location.child("copy").read() == b"precious"


def test_a_place_that_is_not_empty_is_refused_and_left_alone(local_request, console):
    beside = Path(local_request.run).parent
    (line,) = refused(replace(local_request, out=str(beside)), console)
    assert line == f"{beside} is not empty: it holds run; name an empty --out"
    assert [path.name for path in beside.iterdir()] == ["run"]


def test_a_part_that_went_or_changed_since_is_refused_before_anything_is_written(
    local_request, console
):
    last = max(Path(local_request.run, "explanations").iterdir())
    last.unlink()
    (line,) = refused(local_request, console)
    assert "its summary.json has" in line
    assert "parts came, went or changed since the run was finished" in line
    assert list(Path(local_request.out).iterdir()) == []


def test_a_disk_that_is_sure_to_be_too_small_is_told_before_anything_is_read(
    local_request, console
):
    path = Path(local_request.run, "summary.json")
    huge = {"rows": 10**12, "statuses": {"ok": 10**12}}
    path.write_text(json.dumps(json.loads(path.read_text()) | huge))
    (line,) = refused(local_request, console)
    assert line.startswith("sorting needs more than 22351.7 GiB under ")
    assert line.endswith(" GiB are free: set TMPDIR to a folder with more room")


def test_a_log_gets_a_line_every_while(local_request, console, monkeypatch):
    monkeypatch.setattr("jobs.progress.LINE_SECONDS", 0)
    export(local_request, console)
    count = len(rows())
    lines = told(console).splitlines()
    assert f"read: 37 of {count} rows" in lines
    assert f"read: {count} of {count} rows" in lines
    assert f"written: {count} of {count} rows" in lines


def saliency(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobs.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def imported(answer: subprocess.CompletedProcess) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}


def test_the_command_exports_without_torch_and_ray(local_request):
    command = ("export", local_request.run, "--to", "parquet", "--out", local_request.out)
    answer = saliency(*command, "--sort-by", "label")
    assert answer.returncode == 0
    assert "sorted by label" in answer.stdout
    assert not imported(answer) & {"torch", "ray", "timm"}
    answer = saliency(*command)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "sorted_by: label, row, target_rank there, target, row, target_rank here" in (
        answer.stdout
    )


def test_its_help_loads_nothing_and_its_choices_are_an_enumeration(local_request):
    answer = saliency("export", "--help")
    assert answer.returncode == 0
    assert "{target,label,predicted}" in answer.stdout
    assert not imported(answer) & {"torch", "ray", "timm", "pyarrow"}
    for options in (["--sort-by", "entropy"], ["--to", "csv"]):
        wrong = saliency("export", local_request.run, "--out", local_request.out, *options)
        assert wrong.returncode == 2
