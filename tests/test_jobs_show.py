"""What is shown of an image is its own map on its own pixels, whatever it is called."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from explainer.plot import MARGIN, overlay
from explainer.preprocess import Preprocessing, decode
from jobs.commands import ShowConfig
from jobs.config import ConfigurationError, Exit
from jobs.show import show
from jobs.show_told import Explained, ends
from jobs.terminal import Terminal
from storage import audit_schema, schema
from storage.audits import open_or_create_audit
from storage.locations import Location
from storage.manifests import read_manifest
from storage.runs import Run, open_or_create

GRID = (4, 5)
SIDE = 32
IDS = [
    *("a/b.png", "../up.png", "q'uo\"te.png", "new\nforged: line.png", "<script>1</script>.png"),
    *("\u202egpj.png", "日本.png", "[bold]x[/bold]", "$x^.png", "-dash", "ü" * 150, "gone.png"),
]
GONE = "gone.png"
NAMES = ("ant", "b/e\ne", "c" * 200)
DIGEST = "d" * 64
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def pixels_of(number: int) -> np.ndarray:
    height, width = (40, 60) if number % 2 else (90, 20)
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def map_of(number: int, rank: int) -> np.ndarray:
    return np.random.default_rng([number, rank]).random(GRID).astype(np.float16)


def preprocessing() -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    return Preprocessing((SIDE, SIDE), half, half, 0.875, "center", "bicubic")


def rows_of(number: int, targets: int, *, labelled: bool) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"run": "r", "row": number, "image_id": IDS[number], "uri": None}
    if labelled:
        common |= {"label": 0, "label_name": NAMES[0]}
    if IDS[number] == GONE:
        return [common | {"status": "missing", "error": "no such file"}]
    height, width = pixels_of(number).shape[:2]
    common |= {"status": "ok", "width": width, "height": height, "predicted": 1}
    common |= {"bytes": len(png(pixels_of(number))), "predicted_name": NAMES[1]}
    decoded = decode(png(pixels_of(number)), preprocessing())
    common |= dict(zip(("mean_r", "mean_g", "mean_b"), decoded.mean, strict=True))
    common |= {"contrast": decoded.contrast}
    return [
        common
        | {"probability": 0.5, "target": 1 + rank, "target_name": NAMES[1 + rank]}
        | {"target_kind": "top", "target_rank": rank, "target_probability": 0.5 - rank / 8}
        | {"saliency": map_of(number, rank).flatten(), "score_min": -1.5, "score_max": 2.25}
        | {"peak_row": 1, "peak_col": 2, "border_mass": 0.5, "entropy": 0.9}
        for rank in range(targets)
    ]


def make_run(folder: Location, targets: int = 1, *, labelled: bool = True) -> Run:
    """A finished run of all IDS, as `saliency explain` leaves it, in parts of 1, 4 and 7 images."""
    lines = []
    for number, image_id in enumerate(IDS):
        if image_id != GONE:
            folder.child("images", f"{number}.png").create(png(pixels_of(number)))
        uri = folder.child("images", f"{number}.png").url
        label = NAMES[0] if labelled else None
        lines.append(json.dumps({"image_id": image_id, "uri": uri, "label": label}))
    listed = folder.child("list.jsonl")
    listed.create("\n".join(lines).encode())
    manifest = read_manifest(listed)
    stored = vars(preprocessing())
    identity = {"preprocessing": stored, "method": {"score": "log_odds"}}
    run = open_or_create(
        folder.child("run"),
        {
            "fingerprint_of": identity,
            "grid": list(GRID),
            "rows": len(IDS),
            "targets_per_image": targets,
            "shard_size": 4,
            "config": {"input": {"manifest": listed.url}},
        },
    )
    run.manifest.create(manifest.data)
    for index, (start, stop) in enumerate(((0, 1), (1, 5), (5, len(IDS)))):
        rows = [row for n in range(start, stop) for row in rows_of(n, targets, labelled=labelled)]
        part = pa.Table.from_pylist(rows, schema=schema.explanations(GRID))
        run.publish(index, schema.encode_parquet(part, {"run": run.id}))
    run.write_summary({"state": "complete", "parts_digest": DIGEST})
    return run


def plain_terminal(**kind: Any) -> Terminal:
    return Terminal(
        **{"file": io.StringIO(), "width": 100, "highlight": False, "soft_wrap": True} | kind
    )


def shown(request: ShowConfig, **kind: Any) -> tuple[Exit, str]:
    console = plain_terminal(**kind)
    code = show(request, console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}


@pytest.fixture
def request_of(tmp_path: Path) -> ShowConfig:
    """A run on this machine, and a folder for its pictures."""
    run = make_run(Location(str(tmp_path / "all")))
    return ShowConfig(run.root.url, [], str(tmp_path / "pictures"))


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-1.5, 2.25, ("-1.50", "2.25")),
        (-6.5, -6.5 + 2**-12, ("-6.500000", "-6.499756")),
        (-1200.4, 300.0, ("-1200", "300")),
        (2.0, 2.0, ("2.00", "2.00")),
    ],
)
def test_the_ends_of_a_scale_tell_its_range(low, high, told):
    assert ends(Explained({"score_min": low, "score_max": high}, None, None)) == told


def panels(picture: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The original and the overlay in a picture of both beside each other."""
    row = picture[-MARGIN - height : -MARGIN]
    return row[:, MARGIN : MARGIN + width], row[:, 2 * MARGIN + width : 2 * MARGIN + 2 * width]


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_picture_is_the_image_beside_its_own_map_on_what_the_model_saw(request_of, number):
    code, told = shown(replace(request_of, ids=[IDS[number]]))
    assert code is Exit.COMPLETE
    ((_, picture),) = pictures(Path(request_of.out)).items()
    pixels = pixels_of(number)
    factor = -(-320 // max(pixels.shape))
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    original, overlaid = panels(picture, *large.shape[:2])
    assert (original == large).all()
    left, top, right, bottom = (factor * e for e in preprocessing().seen(*pixels.shape[:2]))
    wanted = overlay(large, map_of(number, 0).astype(float), (left, top, right, bottom))
    assert (overlaid == np.asarray(wanted)).all()
    assert "label       │ ant" in told
    assert r"predicted   │ b/e\ne, probability 0.500, wrong" in told
    assert "score       │ log-odds -1.50 to 2.25" in told
    assert "peak        │ row 1, column 2 of 4 x 5 cells" in told
    assert "border mass │ 0.50 (0.70 if it were even)" in told
    assert "findings    │ not audited" in told


def test_any_image_has_a_picture_of_its_own_and_its_name_is_text(request_of, tmp_path):
    code, told = shown(replace(request_of, ids=IDS))
    assert code is Exit.INCOMPLETE
    assert len(pictures(Path(request_of.out))) == len(IDS) - 1
    assert {path.name for path in tmp_path.iterdir()} == {"all", "pictures"}
    assert not OBEYED.search(told)
    assert r"new\nforged: line.png (row 3)" in told
    assert "[bold]x[/bold] (row 7)" in told
    assert not any(line.startswith("forged") for line in told.splitlines())
    assert told.index("missing, so it has no map") > told.index("gone.png (row 11)")
    assert "no such file" in told


def test_of_several_targets_each_has_a_picture_and_one_can_be_chosen(tmp_path):
    run = make_run(Location(str(tmp_path / "all")), targets=2)
    request = ShowConfig(run.root.url, ["a/b.png", GONE], str(tmp_path / "pictures"))
    assert shown(request)[0] is Exit.INCOMPLETE
    found = pictures(tmp_path / "pictures")
    assert sorted(name.partition("@")[2][:9] for name in found) == ["00001-b%2", "00002-ccc"]
    pixels = pixels_of(0).repeat(4, 0).repeat(4, 1)
    seen = tuple(4 * side for side in preprocessing().seen(90, 20))
    for name, picture in found.items():
        rank = 0 if "@00001" in name else 1
        wanted = overlay(pixels, map_of(0, rank).astype(float), seen)
        assert (panels(picture, 360, 80)[1] == np.asarray(wanted)).all()
    one = replace(request, ids=["a/b.png"], target=NAMES[2], out=str(tmp_path / "one"))
    code, told = shown(one)
    assert code is Exit.COMPLETE
    assert "(top, number 2), probability 0.375" in told.replace("│\n│             │ ", "")
    ((name, picture),) = pictures(tmp_path / "one").items()
    assert (picture == found[name]).all()
    with pytest.raises(ConfigurationError) as refused:
        shown(replace(one, target="ant"))
    assert refused.value.problems == [
        f"--target: no map of 'a/b.png' is of 'ant'; they are of 'b/e\\ne', {NAMES[2]!r}"
    ]


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_written(request_of, tmp_path):
    asked = replace(request_of, ids=["b.png", "a/b.pmg", "zzz\n", IDS[0]], target="bee")
    with pytest.raises(ConfigurationError) as refused:
        shown(replace(asked, out=f"{request_of.run}/explanations"))
    assert refused.value.problems == [
        f"--out: {request_of.run}/explanations lies in the run: name a place outside of it",
        "IMAGE_ID: the run has no image 'b.png'; did you mean 'a/b.png'?",
        "IMAGE_ID: the run has no image 'a/b.pmg'; did you mean 'a/b.png'?",
        r"IMAGE_ID: the run has no image 'zzz\n'",
        r"--target: no map of 'a/b.png' is of 'bee'; they are of 'b/e\ne'",
    ]
    assert not Path(request_of.out).exists()
    with pytest.raises(ConfigurationError, match=r"^IMAGE_ID: name one image at least"):
        shown(request_of)
    with pytest.raises(ConfigurationError, match=r"^RUN: .* holds no run"):
        shown(replace(asked, run=str(tmp_path)))


def test_an_image_that_has_changed_or_gone_is_not_shown_under_the_old_map(request_of, tmp_path):
    images = tmp_path / "all" / "images"
    size = len((images / "0.png").read_bytes())
    assert len(png(pixels_of(2))) == size  # noise of the same shape: other colours alone
    (images / "0.png").write_bytes(png(pixels_of(2)))
    (images / "1.png").unlink()
    # As many bytes and not as many pixels: a file that ends in what no decoder reads.
    other, large = png(np.zeros((40, 61, 3), np.uint8)), len((images / "3.png").read_bytes())
    (images / "3.png").write_bytes(other + b"\0" * (large - len(other)))
    (images / "5.png").write_bytes(b"no image")
    longer = len(png(pixels_of(7))) + 1
    (images / "7.png").write_bytes(png(pixels_of(7)) + b"\0")
    code, told = shown(replace(request_of, ids=[IDS[n] for n in (0, 1, 3, 5, 7, 2)]))
    assert code is Exit.INCOMPLETE
    assert len(pictures(Path(request_of.out))) == 1
    why = "picture: none: the image is no longer the one that was explained: it has"
    same = f"{size} bytes, 20 x 90 pixels"
    assert f"{why} {same} and had {same}, but other colours\n" in told
    assert f"{why} {large} bytes, 61 x 40 pixels and had {large} bytes, 60 x 40 pixels\n" in told
    assert f"{why} {longer} bytes, 60 x 40 pixels and had {longer - 1} bytes" in told
    assert "picture: none: the image cannot be read now: missing: " in told
    assert "picture: none: the image cannot be read now: undecodable: no image format" in told


def test_a_part_that_lacks_the_image_is_told(request_of):
    (Path(request_of.run) / "explanations" / "part-00000002.parquet").unlink()
    with pytest.raises(ConfigurationError, match=r"^RUN: .*part-00000001\.parquet lacks row 6"):
        shown(replace(request_of, ids=[IDS[6]]))
    (Path(request_of.run) / "explanations" / "part-00000000.parquet").unlink()
    with pytest.raises(ConfigurationError, match=r"^RUN: .* has no part that begins with row 0"):
        shown(replace(request_of, ids=[IDS[0]]))


def test_a_run_is_shown_from_and_to_any_store(location: Location, tmp_path):
    run = make_run(location, labelled=False)
    options = tmp_path / "options.json"
    options.write_text(json.dumps(location.options))
    out = location.child("pictures")
    storages = str(options), str(options)
    code, told = shown(ShowConfig(run.root.url, [IDS[0], IDS[1]], out.url, None, *storages))
    assert code is Exit.COMPLETE, told
    assert sorted(out.names()) == ["%2E.%2Fup.png.png", "a%2Fb.png.png"]
    assert told.count("label       │ none") == 2
    assert f"picture: {out.shown}/a%2Fb.png.png" in told


def audited(run: Run, parts_digest: str, carriers: Sequence[int]) -> str:
    audit = open_or_create_audit(run, {"parts_digest": parts_digest})
    required = {"severity": 0.5, "images": 9, "explained": 9, "candidates": 1, "passes": 1}
    required["apart"] = 0.5
    finding = {"target": 1, "target_name": "b\nee", "cue": 0, "verdict": "shortcut"}
    finding |= {"reason": "because", "kind": "content", "is_fixed": True, **required}
    for place, rows, columns in (
        (audit.findings, [finding], audit_schema.findings()),
        (
            audit.carriers,
            [
                {"target": 1, "cue": 0, "verdict": "shortcut", "row": row, "likeness": 0.9}
                | {"cells": [True] * 20}
                for row in carriers
            ],
            audit_schema.carriers(GRID),
        ),
    ):
        place.replace(schema.encode_parquet(pa.Table.from_pylist(rows, schema=columns), {}))
    return audit.run.id


def test_the_findings_of_audits_of_these_parts_are_told(location: Location, tmp_path):
    run = make_run(location)
    options = tmp_path / "options.json"
    options.write_text(json.dumps(location.options))
    storages = str(options), str(options)
    request = ShowConfig(run.root.url, [IDS[0], IDS[1]], str(tmp_path), None, *storages)
    audited(run, "of other parts", [0, 1])
    assert shown(request)[1].count("findings    │ not audited") == 2
    name = audited(run, DIGEST, [0, 4])
    told = shown(request)[1]
    assert rf"findings    │ b\nee: shortcut, content at one place (cue 0 of audit {name})" in told
    assert "findings    │ none: it carries no cue, or no audit looked at it" in told


def test_a_terminal_with_colours_shows_the_overlay_and_any_other_shades(request_of, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    asked = replace(request_of, ids=[IDS[1]])
    _, told = shown(asked, force_terminal=True, color_system="truecolor", height=21)
    lines = [line for line in told.splitlines() if "▀" in line]
    assert len(lines) == 20  # the height decides: 40 x 60 pixels at 20 x 2 x 60
    assert {line.count("▀") for line in lines} == {60}
    wanted = overlay(pixels_of(1), map_of(1, 0).astype(float), preprocessing().seen(40, 60))
    red, green, blue = np.asarray(wanted)[0, 0]
    assert f"38;2;{red};{green};{blue};" in lines[0]
    terminal = {"force_terminal": True, "color_system": "truecolor"}
    for kind in ({}, terminal | {"color_system": "standard"}, terminal | {"no_color": True}):
        _, told = shown(asked, **kind)
        assert "▀" not in told
        assert "██" in told


def test_a_run_of_our_own_is_shown(finished):
    image_id = "ant/000.png"
    out = Path(finished.out).parent / "pictures"
    code, told = shown(ShowConfig(finished.out, [image_id], str(out)))
    assert code is Exit.COMPLETE, told
    assert list(pictures(out)) == ["ant%2F000.png.png"]


def test_the_command_exits_with_what_was_shown(request_of):
    def saliency(*ids: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", "show", request_of.run, *ids]
        return subprocess.run(
            [*command, "--out", request_of.out], capture_output=True, text=True, check=False
        )

    assert saliency(IDS[0], IDS[1]).returncode == 0
    assert saliency(GONE).returncode == 1
    answer = saliency("nowhere")
    assert answer.returncode == 2
    assert answer.stdout == "IMAGE_ID: the run has no image 'nowhere'\n"
    assert answer.stderr == ""
