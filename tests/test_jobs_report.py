"""The page as a real browser shows it: text stays text, and clicks and keys do what they say."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from playwright.sync_api import expect
from rich.console import Console

from benchmarks.report_run import GRID, PREPROCESSING, make_run
from explainer.preprocess import Preprocessing
from jobs.commands import ReportConfig
from jobs.compare import compare_runs
from jobs.config import ConfigurationError, Exit, InputConfig
from jobs.report import Budget, report
from jobs.report_classes import Classes
from jobs.report_findings import Card, Findings
from jobs.report_pictures import cells_url, photo
from jobs.report_scan import Scan, Shown, scan_table
from storage import audit_schema, schema
from storage.audits import chosen_audit, open_or_create_audit
from storage.locations import Location

SCRIPT = "<script>alert(1)</script>"
ARABIC = "شجرة قديمة"
HOW = Preprocessing(**(PREPROCESSING | {"input_size": (96, 96)}))
NAMES = (
    "ant", SCRIPT, ARABIC, 'quote"s & \'more\'', "</script><b>bold", "{{ 7 * 7 }}", "a" * 300,
    "new\nline", "bee", "zebra",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(Location(str(tmp_path_factory.mktemp("run") / "run")), NAMES, 24, 3)


@pytest.fixture(scope="module")
def written(run):
    assert told(ReportConfig(run.root.url))[0] is Exit.COMPLETE
    return Path(run.root.url) / "report.html"


def told(request):
    console = Console(file=io.StringIO(), width=200)
    return report(request, console), console.file.getvalue()


def shown(page):
    return [
        name.strip() for name in page.locator("#table tbody tr:visible .open").all_inner_texts()
    ]


def test_names_are_text_whatever_they_hold(opened, written, shot):
    page = opened(written)
    names = page.locator("#table tbody .open")
    found = [names.nth(i).evaluate("b => b.textContent") for i in range(names.count())]
    assert sorted(found) == sorted(NAMES)
    assert page.locator("b", has_text="bold").count() == 0
    assert page.locator("img[src=x]").count() == 0
    page.locator("#table tbody .open", has_text=SCRIPT).click()
    assert page.locator("tr.detail figcaption bdi", has_text=SCRIPT).count() > 0
    assert page.locator("#run").get_by_text("<img src=x onerror=alert(1)>").count() == 1
    arabic = page.locator("#table tbody .open bdi", has_text=ARABIC)
    assert arabic.evaluate("b => getComputedStyle(b).unicodeBidi") == "isolate"
    shot(page, "hostile-names")


def test_searching_by_key_and_filtering_by_verdict(opened, written):
    page = opened(written)
    assert len(shown(page)) == len(NAMES)
    page.locator("h1").click()
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("BEE")
    assert shown(page) == ["bee"]
    expect(page.locator("#count")).to_have_text(f"1 of {len(NAMES)} classes")
    page.keyboard.press("Escape")
    assert len(shown(page)) == len(NAMES)
    page.locator("#verdict").select_option(label="shortcut")
    assert len(shown(page)) == 3
    page.keyboard.press("/")  # in a select it is the select's
    page.locator("#search").fill("ant")
    assert shown(page) == ["ant"]
    page.locator("#search").fill("no such class")
    expect(page.locator("#count")).to_have_text(f"0 of {len(NAMES)} classes")


@pytest.mark.parametrize(("key", "column"), [("accuracy", 4), ("explained", 5), ("agreement", 6)])
def test_sorting_by_clicks(opened, written, key, column):
    page = opened(written)
    head = page.locator(f"th[data-key={key}]")
    rows = page.locator("#table tbody tr")

    def values():
        texts = [
            rows.nth(i).locator("td, th").nth(column).inner_text() for i in range(rows.count())
        ]
        return [float(re.sub("[%,]", "", text)) for text in texts]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    assert page.locator("th[data-key=name]").get_attribute("aria-sort") == "none"


def test_verdicts_sort_the_worst_first(opened, written):
    page = opened(written)
    page.locator("th[data-key=order] button").click()
    verdicts = page.locator("#table tbody tr td:nth-child(2)").all_inner_texts()
    assert verdicts == ["shortcut"] * 3 + ["cleared"] * (len(NAMES) - 3)


def test_a_class_opens_and_closes_by_keys(opened, written):
    page = opened(written)
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    first = page.locator("#table tbody .open").first
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    assert first.get_attribute("aria-expanded") == "true"
    detail = page.locator("tr.detail")
    assert detail.locator(".heat").count() == 4
    expect(detail.locator(".frame").first).to_be_visible()
    loaded = "i => i.decode().then(() => i.naturalWidth)"
    assert detail.locator(".frame img").first.evaluate(loaded) > 50
    page.keyboard.press("o")
    expect(detail.locator(".layer").first).to_be_hidden()
    page.keyboard.press("o")
    expect(detail.locator(".layer").first).to_be_visible()
    first.press("Enter")
    assert detail.count() == 0
    page.locator("#keys").uncheck()
    page.locator("h1").click()
    page.keyboard.press("o")
    expect(page.locator("#layers")).to_be_checked()


def test_a_finding_shows_its_evidence_and_a_picture_at_its_own_size(opened, written):
    page = opened(written)
    card = page.locator(".card").first
    assert page.locator(".card").count() == 3
    assert card.locator(".badge").inner_text() == "shortcut"
    assert "0.60 [0.50, 0.70]" in card.inner_text()
    assert card.locator(".photos").count() == 2
    sheet = card.locator(".sheet img")
    assert sheet.evaluate("i => i.decode().then(() => i.naturalWidth)") == 96
    card.locator("button.frame").first.click()
    large = page.locator("dialog")
    expect(large).to_be_visible()
    assert large.locator("img").first.evaluate("i => i.naturalWidth") == 96
    assert large.locator(".layer").count() == 1
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_barrier(opened, written, theme, shot, barriers):
    page = opened(written)
    page.locator("#theme").select_option(theme)
    page.locator("#table tbody .open").first.click()
    assert not barriers(page)
    shot(page, f"report-{theme}")


def test_every_picture_has_a_text(opened, written):
    page = opened(written)
    page.locator("#table tbody .open").first.click()
    without = "img:not([alt])"
    assert page.locator(without).count() == 0
    silent = page.locator("img[alt='']:not(.layer):not(.scale)")
    assert silent.count() == 0


def test_a_print_is_black_on_white_and_without_controls(opened, written):
    page = opened(written)
    page.locator("#theme").select_option("dark")
    page.emulate_media(media="print")
    expect(page.locator(".tools")).to_be_hidden()
    background = "b => getComputedStyle(b).backgroundColor"
    assert page.locator("body").evaluate(background) == "rgb(255, 255, 255)"
    assert page.locator("body").evaluate("b => getComputedStyle(b).color") == "rgb(0, 0, 0)"


def test_it_fits_a_telephone(opened, written, shot):
    page = opened(written)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "report-narrow")


@pytest.mark.parametrize("where", [".heat img", ".thumb"])
def test_cells_of_maps_are_squares(opened, written, where):
    page = opened(written)
    load = "(i, url) => { i.src = url; return i.decode().then(() => i.width / i.height); }"
    shape = page.locator(where).first.evaluate(load, cells_url(np.zeros((14, 21))))
    assert shape == pytest.approx(1.5, abs=0.02)


def test_a_tall_picture_is_narrow(opened, tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant",), 8, 1)
    picture = tmp_path / "pictures" / "00000.jpg"
    Image.new("RGB", (100, 1400)).save(picture)
    told(ReportConfig(run.root.url))
    page = opened(tmp_path / "report.html")
    page.locator("#table .open").click()
    for frame in (".card .photo .frame", "tr.detail .photo .frame"):
        box = page.locator(frame).first.bounding_box()
        assert box["height"] == pytest.approx(420, abs=10)
        assert box["width"] == pytest.approx(30, abs=1)


def test_the_file_names_no_other_place(written):
    text = written.read_text()
    for policy in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        assert policy in text
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", text)


def test_photographs_are_shown_as_large_as_they_are(
    opened, photos, small_config, run_job, tmp_path, shot
):
    out = str(tmp_path / "run")
    config = replace(small_config, out=out, input=InputConfig(images=str(photos)))
    assert run_job(config)[0] is Exit.COMPLETE
    assert told(ReportConfig(out))[0] is Exit.COMPLETE
    page = opened(tmp_path / "run" / "report.html")
    assert "This run is not audited" in page.locator("#findings").inner_text()
    page.locator("#table tbody .open").first.click()
    expect(page.locator("tr.detail .frame").first).to_be_visible()
    shot(page, "photos")


def test_local_and_s3_runs_have_the_same_page(location, tmp_path):
    run = make_run(location, ("ant", "bee"), 4, 1)
    options = None
    if location.options:
        options = str(tmp_path / "options.json")
        Path(options).write_text(json.dumps(location.options))
    request = ReportConfig(run.root.url, input_storage=options, output_storage=options)
    code, said = told(request)
    assert code is Exit.COMPLETE
    assert "2 classes, with audit" in said
    page = location.child("report.html").read().decode()
    assert page.count('class="frame"') == 3  # of a carrier and two others: one file is missing
    assert page.count('<article class="card"') == 1


def test_without_pictures_no_image_is_read(run, tmp_path):
    Path(run.root.url, "pictures").rename(tmp_path / "away")
    out = str(tmp_path / "page.html")
    try:
        assert told(ReportConfig(run.root.url, out=out, pictures=False))[0] is Exit.COMPLETE
        assert "pictures were left out" in Path(out).read_text()
        assert told(ReportConfig(run.root.url, out=out))[0] is Exit.COMPLETE
        assert "missing: " in Path(out).read_text()
    finally:
        (tmp_path / "away").rename(Path(run.root.url, "pictures"))


def test_what_cannot_be_told_is_refused(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"holds no run \(no run.json\)"):
        told(ReportConfig(str(tmp_path)))
    with pytest.raises(ConfigurationError, match=r"--audit: audit abc of .* is not there"):
        told(ReportConfig(run.root.url, audit="abc"))
    with pytest.raises(ConfigurationError, match=r"--out: .*\n.*--audit: audit abc of "):
        told(ReportConfig(run.root.url, out="nothing://x/y.html", audit="abc"))
    with pytest.raises(ConfigurationError, match=r"--out: cannot write .*: Is a directory"):
        told(ReportConfig(run.root.url, out=str(tmp_path)))
    with pytest.raises(ConfigurationError, match=r"--out: .*run.json may be a file of the run"):
        told(ReportConfig(run.root.url, out=run.root.child("run.json").url))
    summary = run.read_summary()
    try:
        run.write_summary(summary | {"state": "running"})
        with pytest.raises(ConfigurationError, match=r"is not finished \(state: running\)"):
            told(ReportConfig(run.root.url))
        run.write_summary(summary | {"parts_digest": "0"})
        with pytest.raises(ConfigurationError, match=r"class_heatmaps.parquet of .* is of parts"):
            told(ReportConfig(run.root.url))
        run.summary.replace(b'{"state": "complete", "parts_digest": "0"}')
        with pytest.raises(ConfigurationError, match=r"class_heatmaps.parquet of "):
            told(ReportConfig(run.root.url))
    finally:
        run.write_summary(summary)


def test_parts_that_are_not_those_of_the_summary_are_refused(tmp_path):
    run = make_run(Location(str(tmp_path)), [f"class {n}" for n in range(5)], 500, 0)
    run.part(1).delete()
    with pytest.raises(ConfigurationError, match="parts came, went or changed since the run was"):
        told(ReportConfig(run.root.url, pictures=False))


def test_an_audit_that_lost_a_table_is_refused(tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant", "bee"), 4, 1)
    audit = chosen_audit(run, run.read_summary()["parts_digest"])
    for place in (audit.statistics, audit.findings_json):
        kept = place.read()
        place.delete()
        with pytest.raises(ConfigurationError, match=rf"--audit: .*{place.name}"):
            told(ReportConfig(run.root.url))
        place.replace(kept)


def test_a_file_that_is_no_start_of_a_driver_is_passed_over(tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant", "bee"), 4, 0)
    versions = {"resources": {"replicas": 2, "device": "cpu"}, "versions": {"numpy": "1"}}
    run.begin_attempt(versions)
    run.begin_attempt(versions)
    for name in (".DS_Store", "notes.json", "3.json.bak"):
        run.root.child("attempts", name).create(b"{}")
    assert told(ReportConfig(run.root.url))[0] is Exit.COMPLETE
    page = run.root.child("report.html").read().decode()
    assert "2; the last with replicas: 2 on cpu" in page


def test_an_audit_of_other_parts_is_not_told(run):
    summary = run.read_summary()
    identity = {"run": run.id, "parts_digest": "another"}
    stranger = open_or_create_audit(run, identity)
    stranger.run.write_summary({"state": "complete", "ended": "2027-01-01T00:00:00+00:00"})
    assert stranger.run.root.name not in told(ReportConfig(run.root.url))[1]
    match = rf"audit {stranger.run.root.name} of .* is of parts with the digest another"
    with pytest.raises(ConfigurationError, match=match):
        told(ReportConfig(run.root.url, audit=stranger.run.root.name))
    assert run.read_summary() == summary


def test_what_changed_since_the_run_before_is_told(opened, run, tmp_path, shot, barriers):
    other = make_run(Location(str(tmp_path / "after")), NAMES[:3], 40, 1)
    request = ReportConfig(other.root.url, against=run.root.url)
    code, _ = told(request)
    assert code is Exit.COMPLETE
    compared = opened(tmp_path / "after" / "report.html").locator("#compared")
    comparison = compare_runs(run, other)
    images = comparison.images
    tiles = compared.locator(".tiles b").all_inner_texts()
    assert tiles[:3] == [str(n) for n in (images.both, images.only_a, images.only_b)]
    findings = compared.locator("table").first.locator("tbody tr")
    assert findings.count() == len(comparison.findings)
    changes = findings.locator("td:nth-child(2)").all_inner_texts()
    assert changes == [str(finding.change) for finding in comparison.findings]
    assert {"gone", "unknown", "kept", "changed", "new"} >= set(changes)
    told_of = compared.inner_text()
    assert f"Before, as run A: {run.root.url}, vit_none. After, as run B: this run." in told_of
    before, after = comparison.a.audit, comparison.b.audit
    assert f"Of the last complete audits: {before} before, {after} after." in told_of
    assert f"{len(comparison.untested)} classes had a verdict before and have none now" in told_of
    assert not barriers(compared.page)
    shot(compared.page, "compared")


def test_findings_that_are_not_compared_are_not_called_none(opened, run, tmp_path):
    other = make_run(Location(str(tmp_path / "after")), NAMES[:3], 8, 1)
    audit = chosen_audit(other, other.read_summary()["parts_digest"])
    audit.run.write_summary(audit.run.read_summary() | {"state": "incomplete"})
    told(ReportConfig(other.root.url, against=run.root.url))
    compared = opened(tmp_path / "after" / "report.html").locator("#compared").inner_text()
    assert "Not compared: both runs need a complete audit." in compared


def test_a_class_that_is_never_predicted_is_told(opened, tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant", "bee", " ", SCRIPT), 12, 0)
    table = run.read_part(0)
    ok = [status == "ok" for status in table["status"].to_pylist()]
    for name, value in (("predicted", 1), ("predicted_name", "bee"), ("target", 1)):
        field = table.schema.field(name)
        values = pa.array([value if each else None for each in ok]).cast(field.type)
        table = table.set_column(table.schema.get_field_index(name), field, values)
    scanned = scan_table(table, GRID, {1: np.arange(196)}, set())
    heatmaps = run.read_class_heatmaps()
    heatmaps = heatmaps.filter(pa.compute.equal(heatmaps["target"], 1))
    assert Classes(heatmaps, GRID, scanned).unexplained == [(" ", 12), (SCRIPT, 12), ("ant", 11)]
    told(ReportConfig(run.root.url))
    nameless = opened(tmp_path / "report.html").locator("#table .open").first
    assert nameless.inner_text() == "(no name)"


def test_a_run_before_that_cannot_be_compared_is_refused_as_it_was_asked(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"^--against: .* holds no run \(no run.json\)"):
        told(ReportConfig(run.root.url, against=str(tmp_path)))
    other = make_run(Location(str(tmp_path / "other")), ("x", "y"), 4, 0)
    with pytest.raises(ConfigurationError) as error:
        told(ReportConfig(run.root.url, against=other.root.url))
    assert "RUN_" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "side", "reduced"),
    [((1, 3000), 240, True), ((17_000, 2), None, True), ((240, 3), 240, False)],
)
def test_a_picture_of_any_shape_says_whether_it_was_reduced(size, side, reduced):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    found = photo(file.getvalue(), np.zeros(GRID), HOW, side, 10_000)
    assert (found.width, found.height) == size
    assert found.reduced is reduced


@pytest.mark.parametrize(
    ("kind", "is_fixed", "words"),
    [
        ("content", True, "the same content at one place, 6% of an image"),
        ("texture", False, "the same texture at varying places, 6% of an image"),
        ("background", True, "the background of its images"),
        ("colours", True, "the colours of its images"),
    ],
)
def test_a_card_says_what_its_cue_is(kind, is_fixed, words):
    assert Card({"kind": kind, "is_fixed": is_fixed, "area": 0.06}).cue == words


def edited(run, change):
    """Replace the rows of an audit's findings by what `change` makes of them."""
    audit = chosen_audit(run, run.read_summary()["parts_digest"])
    rows = change(audit.table(audit.findings).to_pylist())
    table = pa.Table.from_pylist(rows, schema=audit_schema.findings())
    audit.findings.replace(schema.encode_parquet(table, {}))
    return audit


def test_a_cue_on_all_images_leaves_no_others_to_be_wrong(opened, tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant", "bee"), 8, 1)

    def on_all(rows):
        return [rows[0] | {"carriers": 8, "accuracy_of_others": 0.0}, *rows[1:]]

    edited(run, on_all)
    told(ReportConfig(run.root.url))
    numbers = opened(tmp_path / "report.html").locator(".card .numbers").inner_text()
    assert "none\nall that were looked at have the cue" in numbers


def test_an_incomplete_audit_says_so_where_its_findings_stand(opened, tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant", "bee"), 8, 0)
    audit = chosen_audit(run, run.read_summary()["parts_digest"])
    audit.run.write_summary(
        audit.run.read_summary() | {"state": "incomplete", "classes_missing": 7}
    )
    told(ReportConfig(run.root.url))
    findings = opened(tmp_path / "report.html").locator("#findings").inner_text()
    assert "The audit is incomplete: 7 of the classes are not examined" in findings


def test_a_clean_class_whose_only_cue_was_not_tested_says_so(opened, tmp_path):
    run = make_run(Location(str(tmp_path)), ("ant", "bee"), 8, 0)
    few = {"cue": 0, "verdict": "not testable", "reason": "too few carry it"}

    def untested(rows):
        ant, bee = sorted(rows, key=lambda row: row["target_name"])
        return [ant | few, bee | few, bee | {"cue": 1, "reason": "too little"}]

    edited(run, untested)
    told(ReportConfig(run.root.url))
    clean = opened(tmp_path / "report.html").locator("#clean li")
    assert clean.all_inner_texts() == [
        "ant a cue was found, and not tested: too few carry it",
        "bee too little",
    ]


def test_an_image_of_several_targets_is_one_example(run):
    audit = chosen_audit(run, run.read_summary()["parts_digest"])
    findings = Findings.read(audit)
    row = findings.cards[0]
    carry, _ = findings.examples[row["target"], row["cue"]]
    shown = {
        (image, target): Shown(image, str(image), None, "x", 0.5, target, np.zeros(GRID), 0.0)
        for image in carry
        for target in (101, 102, 103)
    }
    found = findings.card(row, shown).carriers
    assert [image.row for image in found] == carry[:3]
    assert {image.target for image in found} == {101}


def test_classes_of_one_name_have_no_map_by_name(run):
    heatmaps = run.read_class_heatmaps()
    shared = [
        "ant" if name in ("bee", "ant") else name for name in heatmaps["target_name"].to_pylist()
    ]
    place = heatmaps.schema.get_field_index("target_name")
    heatmaps = heatmaps.set_column(place, heatmaps.schema.field(place), pa.array(shared))
    assert set(Classes(heatmaps, GRID, Scan()).means_by_name) == set(NAMES) - {"ant", "bee"}


def test_pictures_share_what_a_page_may_hold():
    few, many = Budget.of(8, 2), Budget.of(1000, 40)
    assert few.finding == 400_000
    assert many.side < few.side
    assert many.kept < few.kept
    assert 1000 * 2 * many.kept * many.exemplar + 40 * 7 * many.finding < 16 * 2**20


@pytest.mark.slow
def test_a_thousand_classes_stay_fluent(opened, tmp_path, shot):
    names = [f"class {number:04d}" for number in range(1000)]
    make_run(Location(str(tmp_path)), names, 100, 60)
    assert told(ReportConfig(str(tmp_path)))[0] is Exit.COMPLETE
    path = tmp_path / "report.html"
    assert path.stat().st_size < 30e6
    page = opened(path)
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert page.evaluate(script) < 2000
    page.locator("#search").fill("0777")
    assert shown(page) == ["class 0777"]
    page.locator("#table tbody tr:visible .open").click()
    expect(page.locator("tr.detail .frame").first).to_be_visible()
    page.locator("#search").fill("")
    page.locator("th[data-key=accuracy] button").click()
    assert len(shown(page)) == 1000
    shot(page, "thousand", whole=False)
