"""Lists of carriers name the images that an audit found, one a line, whatever they are called."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit
from jobs.export import export
from jobs.export_carriers import lines
from jobs.export_findings import Carrier, Cue
from storage.audits import Audit
from storage.locations import Location
from storage.runs import open_run


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def request_of(audited, tmp_path) -> ExportConfig:
    return ExportConfig(str(audited.root), str(tmp_path / "out"), to="carriers")


def told(console: Console) -> str:
    return console.file.getvalue()


def rows_of_run(root: Path) -> dict[int, dict]:
    rows = pq.read_table(root / "explanations").to_pylist()
    return {row["row"]: row for row in rows if row["target_rank"] in (None, 0)}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_list_has_a_line_for_each_carrier_the_likest_first(audited, request_of, console):
    assert export(request_of, console) is Exit.COMPLETE
    out, rows = Path(request_of.out), rows_of_run(audited.root)
    assert sorted(path.name for path in (out / "lists").iterdir()) == [
        "00000-pentagon-cue0-shortcut.txt",
        "00001-a%2Fb-cue0-cleared.txt",
        "00002-..%2Fup-cue1-compact-cue.txt",
    ]
    found = (out / "lists" / "00000-pentagon-cue0-shortcut.txt").read_text().split("\n")
    uris = [rows[row]["uri"] for row in (0, 3, 5, 23)]
    assert found == [*(uri.replace("\n", r"\n") for uri in uris), ""]
    assert Path(uris[0]).exists()


def test_the_tables_read_back_as_they_were(audited, request_of, console):
    export(request_of, console)
    rows = rows_of_run(audited.root)
    carriers = table(Path(request_of.out) / "carriers.csv")
    assert [int(line["row"]) for line in carriers] == [0, 3, 5, 23, 3, 21, 16]
    for line in carriers:
        row = rows[int(line["row"])]
        assert line["image_id"] == row["image_id"] == audited.image_ids[row["row"]]
        assert line["uri"] == row["uri"]
        assert line["predicted_name"] == row["predicted_name"]
        assert float(line["probability"]) == row["probability"]
        assert (Path(request_of.out) / line["list"]).exists()
    findings = table(Path(request_of.out) / "findings.csv")
    assert [line["target_name"] for line in findings] == [
        audited.class_names[i] for i in (0, 2, 3, 1)
    ]
    assert findings[0]["reason"] == "a reason, with\na line"
    assert findings[2]["list"] == ""


def test_images_without_a_file_of_their_own_are_listed_by_id():
    """As those of a tar are, which share its uri."""
    cue = Cue({"target": 0, "cue": 0})
    carriers = [Carrier(row, cue, 1.0, ()) for row in (0, 1)]
    images = {row: {"uri": "a.tar", "image_id": f"a/{row}\n"} for row in (0, 1)}
    assert lines(carriers, images) == b"a/0\\n\na/1\\n\n"


def test_it_is_told_what_was_written_and_that_the_audit_lacks_classes(audited, request_of, console):
    export(request_of, console)
    lines = told(console)
    assert f"{audited.audit}; it is incomplete: 1 classes are not examined" in lines
    assert f"{request_of.out}/ (5 files, " in lines
    said = json.loads((Path(request_of.out) / "export.json").read_text())
    assert (said["cues"], said["carriers"], said["audit"]) == (4, 7, audited.audit)


def test_a_complete_export_is_left_alone_and_an_interrupted_one_is_completed(
    audited, request_of, console
):
    export(request_of, console)
    out = Path(request_of.out)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "carriers.csv").unlink()
    assert export(request_of, console) is Exit.COMPLETE
    assert "this export is complete; nothing to do" in told(console)
    assert not (out / "carriers.csv").exists()
    (out / "export.json").unlink()
    assert export(request_of, console) is Exit.COMPLETE
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole
    (out / "export.json").unlink()
    (out / "carriers.csv").write_text("another's")
    with pytest.raises(ConfigurationError, match=r"carriers.csv holds other bytes than this"):
        export(request_of, console)


def refused(request: ExportConfig) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        export(request, Console(file=io.StringIO()))
    return str(caught.value).splitlines()


def test_another_export_and_a_place_that_is_not_empty_are_refused(request_of, console, tmp_path):
    export(request_of, console)
    lines = refused(replace(request_of, to="relabel"))
    assert lines == [
        f"{request_of.out} is of another export than this one:",
        "  format: carriers there, relabel here",
        "name an empty --out",
    ]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (line,) = refused(replace(request_of, out=str(tmp_path / "full")))
    assert line.endswith("full is not empty: it holds file; name an empty --out")
    (line,) = refused(replace(request_of, out=f"{request_of.run}/audit/x"))
    assert line.startswith("--out: ")
    assert line.endswith("lies in the run: name a place outside of it")


@pytest.fixture
def copied(audited, tmp_path) -> Path:
    shutil.copytree(audited.root, tmp_path / "run")
    return tmp_path / "run"


NO_AUDIT = (
    "RUN: {} has no audit of its present parts that has ended, and --to carriers is made of what "
    "one found: `saliency audit` it first"
)


def test_which_audit_is_taken(copied, request_of, audited):
    request = replace(request_of, run=str(copied))
    (line,) = refused(replace(request, audit="../audit"))
    assert line == f"RUN: audit ../audit of {copied} is not there; there is {audited.audit}"
    shutil.copytree(copied / "audit" / audited.audit, copied / "audit" / "second")
    summary = copied / "audit" / "second" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"ended": "2000-01-01"}))
    for chosen in (None, "second"):
        out = f"{request.out}-{chosen}"
        asked = replace(request, audit=chosen, out=out)
        assert export(asked, Console(file=io.StringIO())) is Exit.COMPLETE
        told = json.loads(Path(out, "export.json").read_text())
        assert told["audit"] == (chosen or audited.audit)
    shutil.rmtree(copied / "audit")
    (line,) = refused(replace(request, out=request.out + "2"))
    assert line == NO_AUDIT.format(copied)
    (line,) = refused(replace(request, to="virelay", audit="x", out=request.out + "2"))
    assert line == "RUN: --to virelay holds nothing of an audit: leave out --audit"


def test_an_audit_of_other_parts_or_without_an_end_is_refused(copied, request_of, audited):
    request = replace(request_of, run=str(copied), audit=audited.audit)
    audit = Audit(open_run(Location(str(copied / "audit" / audited.audit))))
    audit.run.summary.delete()
    (line,) = refused(request)
    assert line == (
        f"RUN: audit {audited.audit} of {copied} has not ended: the `saliency audit` that began it "
        "does the rest"
    )
    summary = json.loads((copied / "summary.json").read_text())
    (copied / "summary.json").write_text(json.dumps(summary | {"parts_digest": "other"}))
    (line,) = refused(request)
    assert f"audit {audited.audit} of {copied} is of parts with the digest" in line
    assert line.endswith(", and the run has other")


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    request = ExportConfig(str(tmp_path), "/proc/nothing", to="carriers", per_class=0)
    run, per_class, out = refused(request)
    assert run.startswith(f"RUN: {tmp_path} holds no run")
    assert per_class == "--per-class must be at least 1; got 0"
    assert out.startswith("--out: cannot write to /proc/nothing: ")


def test_a_run_in_s3_is_exported_to_s3(audited, s3, tmp_path, console):
    for path in audited.root.rglob("*"):
        if path.is_file() and path.stat().st_size:
            name = str(path.relative_to(audited.root))
            s3.location("run").child(name).create(path.read_bytes())
    (tmp_path / "options.json").write_text(json.dumps(s3.options))
    options = str(tmp_path / "options.json")
    remote = ExportConfig(
        s3.url("run"), s3.url("out"), "carriers", input_storage=options, output_storage=options
    )
    local = ExportConfig(str(audited.root), str(tmp_path / "out"), to="carriers")
    assert export(remote, console) is Exit.COMPLETE
    assert export(local, console) is Exit.COMPLETE
    names = s3.location("out").walk()
    assert len(names) == 7
    for name in names:
        assert s3.location("out").child(name).read() == (tmp_path / "out" / name).read_bytes()
