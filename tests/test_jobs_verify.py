"""Verification: an intact run passes, and each damage is told by name, whatever else is whole."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.commands import VerifyConfig
from jobs.config import ConfigurationError, Exit, ExplainConfig, InputConfig
from jobs.verify import verify
from storage import schema
from storage.locations import Location
from storage.runs import Run, open_run

GOOD = (
    "60 images (60 ok) in 4 parts; rows, manifest, digests, summary.json and class heatmaps agree"
)


def verified(root: Path | str) -> tuple[Exit, list[str]]:
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    code = verify(VerifyConfig(str(root)), console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue().splitlines()


def problems(run: Run) -> list[str]:
    """What is told of a damaged run, less the line with the count, which is checked."""
    code, lines = verified(run.root.url)
    assert code is Exit.INCOMPLETE
    assert lines[-1].startswith(f"run {run.id}: ")
    return lines[:-1]


@pytest.fixture
def run(finished: ExplainConfig, tmp_path: Path) -> Run:
    """A copy of a finished run, to be damaged."""
    shutil.copytree(finished.out, tmp_path / "run")
    return open_run(Location(str(tmp_path / "run")))


def rewrite(run: Run, index: int, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another part of the same name, whose digest is that of its rows."""
    part = change(run.read_part(index))
    told = {key.decode(): value.decode() for key, value in part.schema.metadata.items()}
    run.part(index).replace(schema.encode_parquet(part, told))


def edited(column: str, at: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def edit(part: pa.Table) -> pa.Table:
        values = part[column].to_pylist()
        values[at] = value
        field = part.schema.field(column)
        number = part.column_names.index(column)
        return part.set_column(number, field, pa.array(values, field.type))

    return edit


def edit_json(location: Location, change: dict[str, Any]) -> None:
    location.replace(json.dumps(json.loads(location.read()) | change).encode())


def test_an_intact_run_is_verified_in_a_line(run):
    assert verified(run.root.url) == (Exit.COMPLETE, [f"run {run.id}: {GOOD}"])


def test_a_part_that_is_gone(run):
    run.part(2).delete()
    assert problems(run)[0] == "explanations/part-00000002.parquet is missing"


@pytest.mark.parametrize("length", [0, 10, 3000])
def test_a_part_that_is_cut(run, length):
    run.part(1).replace(run.part(1).read()[:length])
    told = problems(run)
    assert len(told) == 2
    assert told[0].startswith("explanations/part-00000001.parquet: cannot read a part: ")
    assert told[1] == (
        "summary.json and class_heatmaps.parquet were not compared: parts cannot be read"
    )


def test_a_flipped_byte_is_told_wherever_it_changes_what_is_read(run):
    data, intact = run.part(1).read(), run.read_part(1)
    for place in range(4, len(data), 499):
        spoilt = bytearray(data)
        spoilt[place] ^= 0x40
        run.part(1).replace(bytes(spoilt))
        code, lines = verified(run.root.url)
        if code is Exit.COMPLETE:  # in a statistic or a comment
            assert run.read_part(1).equals(intact), place
        else:
            assert lines[0].startswith("explanations/part-00000001.parquet: "), place
    saliency = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(28)
    assert saliency.path_in_schema.startswith("saliency")
    spoilt = bytearray(data)
    spoilt[saliency.data_page_offset + saliency.total_compressed_size - 9] ^= 1
    run.part(1).replace(bytes(spoilt))
    assert problems(run)[0].startswith("explanations/part-00000001.parquet: ")


def test_a_part_under_anothers_name(run):
    run.part(2).replace(run.part(1).read())
    told = problems(run)
    assert told[:3] == [
        "explanations/part-00000002.parquet: its metadata say shard '1'; it should be '2'",
        "explanations/part-00000002.parquet: row 16 is none of its shard's, 32 to 47 (and 15 more)",
        "explanations/part-00000002.parquet: row 32 of the manifest is missing (and 15 more)",
    ]


def test_a_part_of_another_run(run):
    rewrite(
        run, 0, lambda part: part.replace_schema_metadata(part.schema.metadata | {b"run": b"x"})
    )
    assert problems(run)[0].endswith(f"its metadata say run 'x'; it should be '{run.id}'")


def test_a_part_whose_footer_counts_other_statuses_than_its_rows(run):
    wrong = {b"statuses": b'{"missing": 1, "ok": 15}'}
    rewrite(run, 0, lambda part: part.replace_schema_metadata(part.schema.metadata | wrong))
    assert problems(run) == [
        "explanations/part-00000000.parquet: its metadata count images as "
        '\'{"missing": 1, "ok": 15}\'; its rows: {"ok": 16}'
    ]


def test_a_part_of_an_earlier_version_counts_no_statuses(run):
    def older(part: pa.Table) -> pa.Table:
        kept = {k: v for k, v in part.schema.metadata.items() if k != b"statuses"}
        return part.replace_schema_metadata(kept)

    rewrite(run, 0, older)
    assert verified(run.root.url)[0] is Exit.COMPLETE


def dropped(part: pa.Table) -> pa.Table:
    return pa.concat_tables([part.slice(0, 3), part.slice(4)])


def doubled(part: pa.Table) -> pa.Table:
    return pa.concat_tables([part.slice(0, 4), part.slice(3)])


def swapped(part: pa.Table) -> pa.Table:
    return part.take([1, 0, *range(2, len(part))])


def failed(part: pa.Table) -> pa.Table:
    return edited("status", 3, "missing")(part)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dropped, "row 19 of the manifest is missing"),
        (
            doubled,
            "row 19 is there 2 times with a map and 0 times without; it should be there 1 times "
            "with one, or once without",
        ),
        (swapped, "row 16 comes after row 17"),
        (failed, "row 19: target must be null where the status is not ok, and only there"),
        (edited("target_rank", 3, 1), "row 19 has target_rank 1; 0 should be there"),
        (edited("row", 3, 70), "row 70 is none of its shard's, 16 to 31"),
        (edited("image_id", 3, "other\n"), "image_id of row 19 is 'other\\n'; the manifest has '"),
        (edited("uri", 3, None), "uri of row 19 is None; the manifest has '/"),
        (edited("label_name", 3, "dog"), "label_name of row 19 is 'dog'; the manifest has '"),
        (edited("run", 3, "other"), "row 19 is of another run"),
        (lambda part: part.slice(0, 0), "it has no rows"),
        (lambda part: part.drop_columns(["uri"]), "has no columns uri"),
        (lambda part: part.drop_columns(["status"]), "has no column status"),
    ],
)
def test_rows_that_were_changed_with_their_digest(run, change, told):
    rewrite(run, 1, change)
    lines = problems(run)
    assert any(line.startswith(f"explanations/part-00000001.parquet: {told}") for line in lines)


def test_a_value_that_only_the_digest_of_all_parts_tells(run):
    rewrite(run, 1, edited("entropy", 3, 0.5))
    told = problems(run)
    assert [line.partition(" is ")[0] for line in told] == [
        "summary.json: parts_digest", "class_heatmaps.parquet: parts_digest",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"statuses": {"ok": 59}}, "statuses is {'ok': 59}; it should be {'ok': 60}"),
        ({"parts": 5}, "parts is 5; it should be 4"),
        ({"rows": 61}, "rows is 61; it should be 60"),
        ({"parts_digest": "0"}, "parts_digest is '0'; it should be '"),
        ({"run": "0"}, "run is '0'; it should be '"),
    ],
)
def test_a_summary_that_was_edited(run, change, told):
    edit_json(run.summary, change)
    (line,) = problems(run)
    assert line.startswith(f"summary.json: {told}")


def test_a_summary_that_is_no_json(run):
    run.summary.replace(b"{")
    (line,) = problems(run)
    assert "summary.json" in line
    assert "is no JSON" in line


def test_class_heatmaps_that_were_edited(run):
    table = run.read_class_heatmaps()
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    field = table.schema.field("std")
    values = [None, *table["std"].to_pylist()[1:]]
    number = table.column_names.index("std")
    changed = table.set_column(number, field, pa.array(values, field.type))
    run.class_heatmaps.replace(schema.encode_parquet(changed, told))
    wanted = "class_heatmaps.parquet: column std is not that of a fresh aggregation of the parts"
    assert problems(run) == [wanted]
    run.class_heatmaps.replace(schema.encode_parquet(table.slice(1), told))
    assert "rows of 9 columns; a fresh aggregation has" in problems(run)[0]
    run.class_heatmaps.replace(b"nothing")
    assert problems(run)[0].startswith("class_heatmaps.parquet cannot be read: ")
    run.class_heatmaps.delete()
    assert problems(run)[0].startswith("class_heatmaps.parquet cannot be read: ")


def test_a_manifest_that_was_edited(run):
    manifest = pq.read_table(io.BytesIO(run.manifest.read()))
    label = pc.if_else(pc.equal(manifest["image_id"], "ant/003.jpg"), "dog", manifest["label"])
    sink = io.BytesIO()
    pq.write_table(manifest.set_column(2, "label", label), sink)
    run.manifest.replace(sink.getvalue())
    digest, row = problems(run)
    assert digest.startswith("manifest: digest is '")
    assert row.endswith("label_name of row 1 is 'ant'; the manifest has 'dog'")
    sink = io.BytesIO()
    pq.write_table(manifest.slice(0, 50), sink)
    run.manifest.replace(sink.getvalue())
    assert problems(run)[0] == "manifest: rows is 50; it should be 60"
    run.manifest.replace(b"nothing")
    assert problems(run)[0].startswith("manifest: cannot read the manifest: ")
    run.manifest.delete()
    (line,) = problems(run)
    assert line == f"manifest: {run.manifest} is missing; rows were not compared with it"


def test_without_the_manifest_parts_must_follow_each_other(run):
    run.manifest.delete()
    rewrite(run, 1, lambda part: part.slice(1))
    told = problems(run)
    assert "explanations/part-00000001.parquet begins with row 17; 16 is the next" in told[2]
    run.part(3).delete()
    assert "the parts end before row 48; run.json has 60 rows" in problems(run)


def test_objects_that_are_no_parts_of_the_run(run):
    data = run.part(1).read()
    for name in ("part-00000004.parquet", "part-000000001.parquet", "copy.parquet", "a/b.parquet"):
        run.root.child("explanations", name).replace(data)
    run.root.child("explanations", ".hidden").replace(data)
    assert problems(run) == [
        f"explanations/{name!r} is no part of this run: remove it"
        for name in (
            "a/b.parquet",
            "copy.parquet",
            "part-000000001.parquet",
            "part-00000004.parquet",
        )
    ]


def test_an_unfinished_run_says_how_much_is_missing(run):
    edit_json(run.summary, {"state": "running"})
    run.part(0).delete()
    run.part(3).delete()
    assert problems(run) == [
        "the run is unfinished (state: running); the `saliency explain` that made it does the rest",
        "2 of 4 shards are missing",
    ]


def test_a_run_json_that_was_edited(run):
    stored = json.loads(run.root.child("run.json").read())
    stored["fingerprint_of"]["precision"] = "mixed"
    run.root.child("run.json").replace(json.dumps(stored).encode())
    assert problems(run)[0].startswith("run.json: fingerprint is '")
    del stored["grid"]
    run.root.child("run.json").replace(json.dumps(stored).encode())
    with pytest.raises(ConfigurationError, match=r"run\.json lacks grid, rows, .*was it edited"):
        verified(run.root.url)


def test_many_problems_are_told_in_twenty_lines_and_a_count(run):
    for number in range(30):
        run.root.child("explanations", f"stray-{number:02d}").replace(b"x")
    told = problems(run)
    assert len(told) == 21
    assert told[-1] == "and 10 more"


def test_a_run_of_a_list_that_stays_where_it_is(run, run_job, finished, image_folder, tmp_path):
    stored = pq.read_table(io.BytesIO(run.manifest.read()))
    pq.write_table(stored, tmp_path / "list.parquet")
    listed = replace(
        finished,
        out=str(tmp_path / "listed"),
        input=InputConfig(manifest=str(tmp_path / "list.parquet")),
    )
    assert run_job(listed)[0] is Exit.COMPLETE
    code, lines = verified(listed.out)
    assert (code, len(lines)) == (Exit.COMPLETE, 1)
    ids = pa.array([f"{name}!" for name in stored["image_id"].to_pylist()])
    pq.write_table(stored.set_column(0, "image_id", ids), tmp_path / "list.parquet")
    told = problems(open_run(Location(listed.out)))
    assert told[0].startswith("manifest: digest is '")
    assert "image_id of row 0 is 'ant/000.png'; the manifest has 'ant/000.png!'" in told[1]
    assert told[1].endswith("(and 15 more)")
    (tmp_path / "list.parquet").unlink()
    (line,) = problems(open_run(Location(listed.out)))
    assert line.startswith("manifest: cannot read the manifest: ")
    assert line.endswith("; rows were not compared with it")


def test_images_inside_files_and_several_targets(run_job, finished, image_folder, tmp_path):
    files = sorted(image_folder.rglob("*.jpg"))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    images[5] = {"bytes": b"nothing", "path": "spoilt"}
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet", row_group_size=13)
    config = replace(
        finished,
        out=str(tmp_path / "run"),
        input=InputConfig(manifest=str(tmp_path / "images.parquet")),
        method=replace(finished.method, target="top:3"),
    )
    config = replace(config, execution=replace(config.execution, max_failed=1.0))
    assert run_job(config)[0] is Exit.COMPLETE
    code, (line,) = verified(config.out)
    assert code is Exit.COMPLETE
    assert "48 images (47 ok, 1 undecodable) in 4 parts" in line
    run = open_run(Location(config.out))
    rewrite(run, 0, dropped)
    assert "row 1 is there 2 times with a map" in problems(run)[0]
    run.manifest.delete()
    assert "is missing; rows were not compared with it" in problems(run)[0]


def test_a_store_over_the_network(run, s3, tmp_path):
    for name in run.root.walk():
        s3.location(f"run/{name}").create(run.root.child(name).read())
    (tmp_path / "options.json").write_text(json.dumps(s3.options))
    console = Console(file=io.StringIO(), width=200)
    request = VerifyConfig(s3.url("run"), str(tmp_path / "options.json"))
    assert verify(request, console) is Exit.COMPLETE


def test_the_command_exits_with_what_it_found_and_waits_for_no_torch(run):
    def command(where: str) -> subprocess.CompletedProcess:
        code = (
            "import sys; from jobs import cli; sys.argv[1:] = ['verify', *sys.argv[1:]]\n"
            "try: cli.main()\n"
            "finally: assert not {'torch', 'ray', 'timm'} & set(sys.modules)"
        )
        arguments = [sys.executable, "-c", code, where]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    answer = command(run.root.url)
    assert answer.stderr == ""  # of the assertion; the exit code is the command's
    assert (answer.returncode, answer.stdout) == (0, f"run {run.id}: {GOOD}\n")
    run.part(0).delete()
    answer = command(run.root.url)
    assert answer.returncode == 1
    assert answer.stdout.splitlines()[0] == "explanations/part-00000000.parquet is missing"
    answer = command("simplecache::s3://bucket/run")
    assert answer.returncode == 2
    assert "RUN: simplecache::s3://bucket/run: urls that are chained" in answer.stdout
    answer = command(run.root.child("explanations").url)
    assert answer.returncode == 2
    assert "holds no run (no run.json)" in answer.stdout
    assert "Traceback" not in answer.stderr
