"""`saliency verify`: whether a run holds what it says; needs neither torch nor Ray."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from rich.console import Console

from jobs.aggregate import Aggregate, sum_part, tasks_of
from jobs.commands import VerifyConfig
from jobs.config import ConfigurationError, Exit
from jobs.images import input_of, selects_everything, stored_manifest
from jobs.options import read_options
from jobs.partcheck import Rule, count_problems, form_problems, manifest_problems, row_problems
from jobs.plan import Shard, planned
from jobs.totals import total_problems, unlike
from storage.columns import to_store
from storage.manifests import ManifestError
from storage.parts import PartsDamaged, in_order, read_whole
from storage.row_reader import read_rows
from storage.rows import RowSource
from storage.runs import FINISHED, NotARun, Run, fingerprint, open_run, part_name
from storage.trust import named

MOST_TOLD = 20
READERS = 16
ROWS_AHEAD = 131_072  # that the readers hold together, about


@dataclass(frozen=True)
class Checked:
    """One part: its problems, and what it adds to the run where its rows could be read."""

    index: int
    problems: list[str]
    rows: range = range(0)
    sums: Aggregate | None = None


@dataclass
class Verification:
    """A run, the problems and remarks so far, and the row that follows those of the parts."""

    run: Run
    rule: Rule
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    next_row: int = 0

    @property
    def rows(self) -> int:
        return int(self.run.description["rows"])

    def note(self, part: Checked, *, must_follow: bool) -> None:
        """Add a part's problems; its rows must follow those of the part before where that is all
        that is known of them.
        """
        name = part_name(part.index)
        self.problems += [f"{name}: {problem}" for problem in part.problems]
        if part.sums is None:
            return
        if must_follow and part.rows.start != self.next_row:
            self.problems.append(
                f"{name} begins with row {part.rows.start}; {self.next_row} is the next after the "
                "part before it"
            )
        self.next_row = part.rows.stop


@dataclass(frozen=True)
class Planned:
    """What is known of a run's manifest: its rows, and its shards; None where that is unknown."""

    source: RowSource | None
    shards: list[Shard] | None


def verify(config: VerifyConfig, console: Console) -> Exit:
    """Check every part and every total of a run; each problem is told in a line.

    Raises ConfigurationError where RUN is no run, StorageUnavailable where its store fails.
    """
    try:
        options = read_options(config.input_storage)
        run = open_run(named(config.run, options))
        found = Verification(run, _rule(run))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError([f"RUN: {error}"]) from error
    _check_description(found)
    plan = _plan(found, options)
    summary = _summary(found)
    indices = _objects(found, plan, summary is not None)
    result = _check_parts(found, plan, indices)
    if summary is not None and result is not None:
        found.problems += total_problems(run, summary, result, found.rule.grid)
    elif summary is not None:
        found.remarks.append(
            "summary.json and class_heatmaps.parquet were not compared: parts cannot be read"
        )
    return _tell(found, len(indices), result, console)


def _rule(run: Run) -> Rule:
    """Raises NotARun where run.json lacks what the parts must agree with."""
    try:
        rows, columns = (int(side) for side in run.description["grid"])
        for name in ("rows", "shard_size"):
            int(run.description[name])
        return Rule(run.id, (rows, columns), int(run.description["targets_per_image"]))
    except (KeyError, TypeError, ValueError) as error:
        raise NotARun(
            f"{run.root}: run.json lacks grid, rows, ... ({error}): was it edited?"
        ) from (error)


def _check_description(found: Verification) -> None:
    described = found.run.description
    identity = described["fingerprint_of"]
    found.problems += unlike("run.json", described, {"fingerprint": fingerprint(identity)})
    for name in ("shard_size", "schema_version"):
        if name in identity:
            found.problems += unlike("run.json", described, {name: identity[name]})


def _plan(found: Verification, options: Mapping[str, Any]) -> Planned:
    """The run's manifest, compared with run.json, and the shards that follow from it."""
    described = found.run.description
    config = input_of(found.run)
    is_everything = selects_everything(config)
    try:
        manifest = stored_manifest(found.run, options)
    except ManifestError as error:
        found.problems.append(f"manifest: {error}; rows were not compared with it")
        return Planned(None, None)
    found.problems += unlike("manifest", {"rows": manifest.rows}, {"rows": found.rows})
    wanted = described["fingerprint_of"].get("manifest")
    found.problems += unlike("manifest", {"digest": manifest.digest}, {"digest": wanted})
    is_whole = manifest.rows == found.rows
    groups = manifest.groups if is_everything else ()
    if groups and not is_whole:
        return Planned(None, None)
    shards = planned(found.rows, groups, int(described["shard_size"]), found.rule.targets)
    return Planned(manifest.source(found.run.manifest) if is_whole else None, shards)


def _summary(found: Verification) -> dict[str, Any] | None:
    """summary.json of a finished run, else None."""
    try:
        summary = found.run.read_summary() or {"state": "not started"}
    except NotARun as error:
        found.problems.append(f"summary.json: {error}")
        return None
    if summary.get("state") in FINISHED and "parts_digest" in summary:
        return summary
    found.problems.append(
        f"the run is unfinished (state: {summary.get('state')}); the `saliency explain` that made "
        "it does the rest"
    )
    return None


def _objects(found: Verification, plan: Planned, is_finished: bool) -> list[int]:
    """The shards whose parts are there; missing and stray objects become problems."""
    folder = found.run.root.child("explanations")
    try:
        names = {name for name in folder.walk() if not posixpath.basename(name).startswith(".")}
    except FileNotFoundError:
        names = set()
    if plan.shards is None:
        wanted = sorted(found.run.committed())
    else:
        wanted = [shard.index for shard in plan.shards]
    of_index = {index: posixpath.basename(part_name(index)) for index in wanted}
    missing = [index for index, name in of_index.items() if name not in names]
    if missing and is_finished:
        found.problems += [f"{part_name(index)} is missing" for index in missing]
    elif missing:
        found.problems.append(f"{len(missing)} of {len(wanted)} shards are missing")
    for name in sorted(names - set(of_index.values())):
        found.problems.append(f"explanations/{name!r} is no part of this run: remove it")
    return [index for index, name in of_index.items() if name in names]


def _check_parts(found: Verification, plan: Planned, indices: list[int]) -> Aggregate | None:
    """Read and check every part once; their sum, where all could be read."""
    shards: dict[int, Shard] = {shard.index: shard for shard in plan.shards or ()}
    rows_of_a_part = max(found.rows * found.rule.targets // max(len(indices), 1), 1)
    readers = max(2, min(READERS, ROWS_AHEAD // rows_of_a_part))
    work = partial(_check_part, found.run, found.rule, plan.source, shards)
    checked = in_order(work, indices, readers)
    result, is_whole = Aggregate(), True
    for task in tasks_of(indices):  # cut as the run cuts: another cut rounds the sums differently
        of_task = Aggregate()
        for part in islice(checked, len(task)):
            found.note(part, must_follow=plan.shards is None)
            if part.sums is None:
                is_whole = False
            elif is_whole:
                of_task.add(part.sums)
        result.add(of_task)
    if plan.shards is None and found.next_row != found.rows:
        found.problems.append(
            f"the parts end before row {found.next_row}; run.json has {found.rows} rows"
        )
    return result if is_whole else None


def _check_part(
    run: Run, rule: Rule, source: RowSource | None, shards: Mapping[int, Shard], index: int
) -> Checked:
    try:
        part = read_whole(run, index)
    except PartsDamaged as error:
        return Checked(index, [str(error)])
    problems = list(form_problems(part, index, rule))
    if any("column" in problem for problem in problems) or not part.num_rows:
        return Checked(index, problems or ["it has no rows"])
    numbers = part["row"].to_numpy()
    rows = range(int(numbers.min()), int(numbers.max()) + 1)
    shard = shards.get(index)
    if shard is None:  # whose rows follow from a manifest that is not there
        if len(rows) > len(part):
            return Checked(
                index, [*problems, f"rows between {numbers.min()} and {numbers.max()} are missing"]
            )
        shard = Shard(index, rows.start, rows.stop)
    problems += row_problems(part, shard, rule)
    if source is not None:
        try:
            listed = to_store(read_rows(source, shard.start, shard.stop))
            problems += manifest_problems(part, listed, shard)
        except (OSError, ValueError) as error:
            problems.append(f"its rows of the manifest cannot be read: {error}")
    problems += count_problems(part)
    return Checked(index, problems, rows, sum_part(part, rule.grid))


def _tell(found: Verification, parts: int, result: Aggregate | None, console: Console) -> Exit:
    problems, lines = found.problems, found.problems[:MOST_TOLD]
    if len(problems) > MOST_TOLD:
        lines = [*lines, f"and {len(problems) - MOST_TOLD} more"]
    for line in [*lines, *found.remarks]:
        console.print(line, markup=False)
    if problems or result is None:
        console.print(f"run {found.run.id}: {len(problems)} problems")
        return Exit.INCOMPLETE
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
    console.print(
        f"run {found.run.id}: {result.images} images ({statuses}) in {parts} parts; rows, "
        "manifest, digests, summary.json and class heatmaps agree",
        markup=False,
    )
    return Exit.COMPLETE
