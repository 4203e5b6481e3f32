"""The table for relabelling holds each image to be looked at, once, and the surest first."""

import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs import export_relabel
from jobs.commands import ExportConfig
from jobs.config import ConfigurationError, Exit
from jobs.export import export
from storage import schema
from storage.digests import table_digest


def exported(root: Path, out: Path) -> pd.DataFrame:
    assert export(ExportConfig(str(root), str(out), to="relabel"), Console(file=io.StringIO())) is (
        Exit.COMPLETE
    )
    return pd.concat([pd.read_csv(path) for path in sorted(out.glob("relabel-*.csv"))])


def images_of(root: Path) -> dict[int, dict]:
    rows = pq.read_table(root / "explanations").to_pylist()
    return {row["row"]: row for row in rows if row["target_rank"] in (None, 0)}


def test_it_holds_all_disagreements_unknown_labels_and_carriers(audited, tmp_path):
    frame, images = exported(audited.root, tmp_path / "out"), images_of(audited.root)
    ok = {row for row, image in images.items() if image["status"] == "ok"}
    differs = {
        row
        for row in ok
        if images[row]["label"] is not None and images[row]["label"] != images[row]["predicted"]
    }
    carriers = {0, 3, 5, 21, 23}  # not 16, whose cue is cleared
    assert differs
    assert carriers - differs
    assert set(frame.row) == differs | {9} | carriers
    assert not frame.row.duplicated().any()
    reasons = dict(zip(frame.row, frame.reason, strict=True))
    assert {row for row, reason in reasons.items() if "disagreement" in reason} == differs
    assert {row for row, reason in reasons.items() if "carrier" in reason} == carriers
    assert reasons[9] == "unknown label"
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said["disagreement"] == len(differs)
    assert said["carrier"] == len(carriers - differs)


def test_the_order_is_reason_then_probability_or_likeness(audited, tmp_path):
    frame = exported(audited.root, tmp_path / "out")
    ranks = [export_relabel.REASONS.index(reason.partition(";")[0]) for reason in frame.reason]
    assert ranks == sorted(ranks)
    differs = frame[frame.reason.str.startswith("disagreement")]
    assert differs.probability.is_monotonic_decreasing
    carriers = frame[frame.reason == "carrier"].row.to_list()
    assert carriers == [row for row in (0, 3, 5, 23, 21) if row in carriers]


def test_values_are_those_of_the_run_whatever_they_hold(audited, tmp_path):
    frame, images = exported(audited.root, tmp_path / "out"), images_of(audited.root)
    for line in frame.to_dict("records"):
        image = images[line["row"]]
        for name in ("image_id", "uri", "label_name", "predicted_name", "predicted"):
            assert line[name] == image[name]
        assert line["probability"] == pytest.approx(image["probability"], rel=1e-6)
        assert pd.isna(line["new_label"])
        is_doubted = line["reason"] != "carrier"
        assert (line["suggested"] == image["predicted_name"]) == is_doubted
    told = dict(zip(frame.row, frame.cues, strict=True))
    assert told[3] == "pentagon cue 0 (shortcut); ../up cue 1 (compact-cue)"


def test_the_labels_probability_is_told_where_a_map_is_of_the_label(audited_top, tmp_path):
    frame = exported(audited_top.root, tmp_path / "out")
    rows = pq.read_table(audited_top.root / "explanations").to_pylist()
    known = {row["row"]: row["target_probability"] for row in rows if row["target"] == row["label"]}
    differs = frame[frame.reason.str.startswith("disagreement")]
    assert set(differs.row) & set(known)
    assert not frame.row.duplicated().any()
    for line in differs.to_dict("records"):
        value = line["label_probability"]
        if line["row"] in known:
            assert value == pytest.approx(known[line["row"]], rel=1e-6)
            assert value < line["probability"]
        else:
            assert pd.isna(value)


def test_a_file_has_so_many_lines_and_the_order_goes_on_in_the_next(audited, tmp_path, monkeypatch):
    whole = exported(audited.root, tmp_path / "whole")
    monkeypatch.setattr(export_relabel, "LINES_OF_A_FILE", 4)
    frame = exported(audited.root, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("relabel-*.csv"))) == -(-len(whole) // 4)
    assert frame.row.to_list() == whole.row.to_list()


def without_labels(root: Path, out: Path) -> Path:
    """The run as if its images had no labels."""
    shutil.copytree(root, out)
    digests = b""
    for path in sorted((out / "explanations").iterdir()):
        part = pq.read_table(path)
        for name in ("label", "label_name"):
            column = part.schema.get_field_index(name)
            nothing = [None] * len(part)
            kind = part.schema.field(name)
            part = part.set_column(column, kind, [pa.array(nothing, kind.type)])
        digests += table_digest(part).encode()
        path.write_bytes(schema.encode_parquet(part, {}))
    summary = json.loads((out / "summary.json").read_text())
    digest = sha256(digests).hexdigest()
    (out / "summary.json").write_text(json.dumps(summary | {"parts_digest": digest}))
    return out


def test_a_run_without_labels_needs_an_audit(audited, tmp_path):
    run = without_labels(audited.root, tmp_path / "run")
    shutil.rmtree(run / "audit")
    with pytest.raises(ConfigurationError, match="has neither labels nor an audit, so there is"):
        exported(run, tmp_path / "out")
    (of_audit,) = (audited.root / "audit").iterdir()
    target = run / "audit" / of_audit.name
    shutil.copytree(of_audit, target)
    summary = json.loads((run / "summary.json").read_text())
    description = json.loads((target / "run.json").read_text())
    description["fingerprint_of"]["parts_digest"] = summary["parts_digest"]
    (target / "run.json").write_text(json.dumps(description))
    frame = exported(run, tmp_path / "out2")
    assert frame.row.to_list() == [0, 3, 5, 23, 21]
    assert set(frame.reason) == {"carrier"}


def test_without_an_audit_disagreements_are_left(finished, tmp_path):
    frame = exported(Path(finished.out), tmp_path / "out")
    images = images_of(Path(finished.out))
    known = [i for i in images.values() if i["label"] is not None]
    assert len(known) == 0
    assert set(frame.reason) == {"unknown label"}
    assert len(frame) == 60
