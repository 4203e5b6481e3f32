"""What is told of a comparison: tables on the terminal, JSON, tables to read on, the exit code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.compare_classes import ClassKeys
from jobs.comparison import (
    Accuracy,
    ClassComparison,
    Comparison,
    CueVerdict,
    FindingChange,
    Heatmaps,
    Maps,
    Setting,
    Side,
)
from jobs.config import Exit
from storage import comparisons
from storage.locations import Location

MOST_TOLD = 20
NO_CUE = CueVerdict("", None, None)
# Settings whose change is no change of how maps are made.
NOT_OF_MAPS = ("manifest", "shard_size", "schema_version", "method.target")


def tell(console: Console, comparison: Comparison, out: Location | None) -> None:
    """Print what changed, the largest changes first, and what could not be compared."""
    _tell_runs(console, comparison)
    _tell_accuracy(console, comparison.classes)
    _tell_maps(console, comparison.classes)
    _tell_findings(console, comparison.findings)
    for remark in comparison.remarks:
        console.print(f"note: {remark}", markup=False)
    if comparison.untested:
        console.print(f"note: {_untested(comparison)}", markup=False)
    if out is not None:
        console.print(f"rows, classes and findings: {out.shown}", markup=False)


def remarks(
    sides: tuple[Side, Side], settings: Sequence[Setting], keys: ClassKeys, labels_changed: int
) -> Iterator[str]:
    """What is not compared, or means something else than it seems to."""
    a, b = sides
    if a.grid != b.grid:
        grids = " and ".join(f"{rows} x {columns}" for rows, columns in (a.grid, b.grid))
        yield f"maps have {grids} cells: no map and no class heatmap is compared"
    made = [
        f"{of.name} ({of.a} and {of.b})"
        for of in settings
        if of.name not in NOT_OF_MAPS and not of.name.startswith("model.")
    ]
    if made:
        yield f"maps are made otherwise, which moves them too: {', '.join(made)}"
    if a.target != b.target:
        yield (
            f"run A explains the target {a.target}, run B {b.target}: class heatmaps "
            "are means over other images; maps of the same image and class are compared all the "
            "same"
        )
    if not keys.is_one_list:
        yield "the class lists differ: classes are the same where their names are"
    if keys.ambiguous:
        yield (
            f"two classes of one run have the name {', '.join(keys.ambiguous[:3])}"
            f"{', ...' if len(keys.ambiguous) > 3 else ''}: no such class is compared"
        )
    if labels_changed:
        yield f"{labels_changed} images have another label: they count for no accuracy"
    for name, side in (("A", a), ("B", b)):
        if side.audit is None:
            yield (
                f"run {name} has no finished audit of its rows: no findings are compared "
                f"(saliency audit {side.root})"
            )


def tell_json(console: Console, comparison: Comparison) -> None:
    """Write the whole comparison as JSON, in ASCII, and nothing else."""
    console.file.write(json.dumps(asdict(comparison), indent=2, allow_nan=False) + "\n")


def failed_by(comparison: Comparison) -> Exit:
    """The exit code of --fail-on new-shortcut; what is not tested again cannot pass."""
    if comparison.new_shortcuts:
        return Exit.FINDINGS
    return Exit.INCOMPLETE if comparison.untested else Exit.COMPLETE


def written(comparison: Comparison) -> tuple[Mapping[str, comparisons.Written], dict[str, Any]]:
    """The tables that are written beside the joined rows, by name, and the whole as plain JSON."""
    classes = [_class_row(each) for each in comparison.classes]
    findings = [_finding_row(each) for each in comparison.findings]
    tables: dict[str, comparisons.Written] = {
        "classes": (classes, comparisons.classes()),
        "findings": (findings, comparisons.findings()),
    }
    return tables, asdict(comparison)


def _untested(comparison: Comparison) -> str:
    named, many = comparison.untested[:3], len(comparison.untested)
    return (
        f"the audit of B has no verdict on {', '.join(named)}{', ...' if many > 3 else ''} "
        f"({many} classes that the audit of A judged)"
    )


def _tell_runs(console: Console, comparison: Comparison) -> None:
    images, accuracy = comparison.images, comparison.accuracy
    table = Table(title="comparison", title_justify="left", show_header=False)
    lines = {
        name: f"{side.run}, {side.model}, weights {side.weights[:12]}, {side.root}"
        for name, side in (("run A", comparison.a), ("run B", comparison.b))
    }
    lines["settings"] = ", ".join(each.name for each in comparison.settings) or "all the same"
    lines["images"] = f"{images.both} in both, {images.only_a} only in A, {images.only_b} only in B"
    lines["predictions"] = (
        f"{images.predictions_changed} of {images.predicted_in_both} images get another class"
    )
    changes = [f"{s.images} {s.before} -> {s.after}" for s in comparison.statuses]
    if changes:
        more = f", and {len(changes) - 5} more kinds" if len(changes) > 5 else ""
        lines["statuses"] = ", ".join(changes[:5]) + more
    if accuracy.images:
        lines["accuracy"] = (
            f"{_shares(accuracy)}, by {_difference(accuracy)} points; {accuracy.became_right} "
            f"became right, {accuracy.became_wrong} wrong"
        )
    for name, value in lines.items():
        table.add_row(name, Text(value))
    console.print(table)


def _tell_accuracy(console: Console, classes: Sequence[ClassComparison]) -> None:
    found = [
        (each.name, each.accuracy)
        for each in classes
        if each.accuracy is not None and each.accuracy.became_right + each.accuracy.became_wrong
    ]
    if not found:
        return
    table = _table("class", "images", "accuracy", "difference", "to right", "to wrong", "q")
    for name, of in found[:MOST_TOLD]:
        q_value = "" if of.q_value is None else _q(of.q_value)
        flips = str(of.became_right), str(of.became_wrong)
        table.add_row(Text(name), str(of.images), _shares(of), _difference(of), *flips, q_value)
    console.print(table)
    _tell_rest(console, len(found), "classes with flips")


def _tell_maps(console: Console, classes: Sequence[ClassComparison]) -> None:
    """The classes whose own images' maps moved most beyond chance."""
    found = [(each, each.maps) for each in classes if each.maps is not None and each.maps.sampled]
    found = [(each, maps) for each, maps in found if maps.drift.moved > 0]
    found.sort(key=lambda pair: (not pair[1].is_significant, -_beyond_chance(pair[1])))
    if not found:
        return
    table = _table("class", "maps", "own", "others'", "moved", "by chance", "q", "peak")
    for each, maps in found[:MOST_TOLD]:
        table.add_row(
            Text(each.name),
            str(maps.images),
            _number(maps.median_correlation),
            _number(maps.drift.of_other_images),
            f"{maps.drift.moved:.0%}",
            f"{maps.drift.by_chance:.0%}",
            _q(maps.q_value),
            _peak(each.heatmaps),
        )
    console.print(table)
    _tell_rest(console, len(found), "classes whose maps changed")
    console.print(
        "own: median correlation of an image's two maps; others': of two images' maps; moved: mass "
        "of their mean that lies in other cells; peak: cell of the class heatmap"
    )
    elsewhere = [each.name for each in classes if each.looks_elsewhere]
    if elsewhere:
        console.print(
            f"{len(elsewhere)} classes look elsewhere and are as often right as before: "
            f"{', '.join(elsewhere[:5])}{', ...' if len(elsewhere) > 5 else ''}",
            markup=False,
        )


def _tell_findings(console: Console, findings: Sequence[FindingChange]) -> None:
    if not findings:
        return
    table = _table("class", "finding", "cue", "A", "B", "right without it", "lift")
    for each in findings[:MOST_TOLD]:
        before, after = each.before or NO_CUE, each.after or NO_CUE
        table.add_row(
            Text(each.class_name),
            str(each.change),
            Text(each.kind),
            Text(before.verdict),
            Text(after.verdict),
            _both(before.right_without, after.right_without, ".0%"),
            _both(before.lift, after.lift, ".2f"),
        )
    console.print(table)
    _tell_rest(console, len(findings), "findings")


def _table(*columns: str) -> Table:
    """Narrow, so that a terminal of 80 columns need not break its cells."""
    return Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _tell_rest(console: Console, found: int, what: str) -> None:
    if found > MOST_TOLD:
        console.print(f"and {found - MOST_TOLD} more {what}")


def _beyond_chance(maps: Maps) -> float:
    return maps.drift.moved - maps.drift.by_chance


def _shares(of: Accuracy) -> str:
    return f"{of.right_a / of.images:.0%} -> {of.right_b / of.images:.0%}"


def _difference(of: Accuracy) -> str:
    value, low, high = (100 * each for each in astuple(of.difference)[:3])
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"


def _both(before: float | None, after: float | None, form: str) -> str:
    told = ["" if value is None else format(value, form) for value in (before, after)]
    return "" if told == ["", ""] else " -> ".join(told)


def _q(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _peak(heatmaps: Heatmaps | None) -> str:
    if heatmaps is None:
        return ""
    a, b = heatmaps.drift.peak_a, heatmaps.drift.peak_b
    return f"{a[0]},{a[1]}" if a == b else f"{a[0]},{a[1]} -> {b[0]},{b[1]}"


def _class_row(of: ClassComparison) -> dict[str, Any]:
    row: dict[str, Any] = {"class_name": of.name}
    if of.accuracy is not None:
        names = ("images", "right_a", "right_b", "became_right", "became_wrong", "p_value")
        row |= {name: getattr(of.accuracy, name) for name in (*names, "q_value")}
        estimate = of.accuracy.difference
        row |= {"difference": estimate.value, "difference_low": estimate.low}
        row |= {"difference_high": estimate.high}
    if of.heatmaps is not None:
        drift = of.heatmaps.drift
        row |= {"heatmap_images_a": of.heatmaps.images_a, "heatmap_images_b": of.heatmaps.images_b}
        row |= {"heatmap_correlation": drift.correlation, "heatmap_moved": drift.moved}
        for side, peak in (("a", drift.peak_a), ("b", drift.peak_b)):
            row |= {f"peak_row_{side}": peak[0], f"peak_col_{side}": peak[1]}
    if of.maps is not None:
        row |= {
            "map_images": of.maps.images,
            "map_correlation": of.maps.median_correlation,
            "map_correlation_of_others": of.maps.drift.of_other_images,
            "map_sample": of.maps.sampled,
            "map_moved": of.maps.drift.moved,
            "map_moved_by_chance": of.maps.drift.by_chance,
            "map_p_value": of.maps.drift.p_value,
            "map_q_value": of.maps.q_value,
        }
    return row


def _finding_row(of: FindingChange) -> dict[str, Any]:
    names = ("class_name", "kind", "overlap", "reason")
    before, after = of.before or NO_CUE, of.after or NO_CUE
    return {
        **{name: getattr(of, name) for name in names},
        "change": str(of.change),
        "before": before.verdict or None,
        "after": after.verdict or None,
        "lift_a": before.lift,
        "lift_b": after.lift,
        "right_without_a": before.right_without,
        "right_without_b": after.right_without,
        "carriers": of.carriers.images,
        "carriers_right_a": of.carriers.right_a,
        "carriers_right_b": of.carriers.right_b,
    }
