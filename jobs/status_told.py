"""How `saliency status` tells a run: a table, a line, JSON."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.look import Beside, Driver, Status

MOST_ERRORS_TOLD = 3
MOST_BESIDE_TOLD = 10
RESUMES = "the `saliency explain` that made it does the rest"
MEANS = {
    "not started": "no driver has begun it",
    "running": "a driver is at work on it",
    "stopped": f"no driver is at work on it; {RESUMES}",
    "complete": "every row is written",
    "failed": "more images failed than --max-failed allows",
}
COMMITTED = {"audit": "classes examined", "evaluate": "shards judged"}


def tell(console: Console, found: Status) -> None:
    """Print the run as a table."""
    table = Table(title=f"run {found.run}: {found.state}", title_justify="left", show_header=False)
    for name, value in _rows(found):
        table.add_row(name, Text(value))
    console.print(table)


def tell_line(console: Console, found: Status) -> None:
    """Print how far the run is as one line."""
    parts = [f"{found.state}: {_progress(found)}", *_pace(found)]
    console.print(", ".join(parts), markup=False)


def tell_json(console: Console, found: Status, indent: int | None) -> None:
    """Write all that is known as JSON, in ASCII, and nothing else; on one line without `indent`."""
    console.file.write(json.dumps(asdict(found), indent=indent, allow_nan=False) + "\n")
    console.file.flush()


def duration(seconds: float) -> str:
    """Some time in its two largest units, such as 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    units = {"d": minutes // 1440, "h": minutes // 60 % 24, "min": minutes % 60}
    return " ".join([f"{count} {unit}" for unit, count in units.items() if count][:2])


def _rows(found: Status) -> Iterator[tuple[str, str]]:
    yield "location", found.location
    yield "state", MEANS[found.state]
    yield "images", _progress(found)
    if found.driver is not None:
        yield "driver", _driver(found.driver)
    if found.attempt > 1:
        yield "starts", f"{found.attempt} drivers so far"
    if pace := _pace(found):
        yield "pace", ", ".join(pace).removeprefix("pace ")
    if found.last_part is not None:
        yield "last part", _last_part(found)
    if found.statuses is not None:
        counts = ", ".join(f"{count} {status}" for status, count in found.statuses.items())
        yield "by status", counts or "no image yet"
    yield from (("stopped by", line) for line in _errors(found.errors))
    for beside in found.beside[:MOST_BESIDE_TOLD]:
        yield beside.kind, _beside(beside)
    if len(found.beside) > MOST_BESIDE_TOLD:
        yield "and", f"{len(found.beside) - MOST_BESIDE_TOLD} more; --json has them"


def _progress(found: Status) -> str:
    # Rounded down: 100% is said where nothing is left.
    percent = 100 * found.rows_done // found.rows if found.rows else 100
    return (
        f"{found.rows_done} of {found.rows} ({percent}%), {found.shards_done} of {found.shards} "
        "shards"
    )


def _pace(found: Status) -> list[str]:
    if found.images_per_second is None:
        return [f"pace unknown: {found.pace_unknown}"] if found.pace_unknown else []
    told = [f"{found.images_per_second:.3g} images/s"]
    if found.rows_done == found.rows:
        return [*told, "every row is written, the class heatmaps are not"]
    if found.seconds_left is not None:
        told.append(f"about {duration(found.seconds_left)} left")
    return told


def _driver(driver: Driver) -> str:
    since = f", since {driver.since}" if driver.since is not None else ""
    seen = f", last heard of {driver.renewed}" if driver.renewed is not None else ""
    return f"{driver.host}, process {driver.process}{since}{seen}"


def _last_part(found: Status) -> str:
    ago = found.seconds_since_last_part
    told = str(found.last_part)
    # Under a second, or after the driver was last heard of: then it says nothing of a standstill.
    return f"{told}, {duration(ago)} before the driver was heard of" if ago and ago >= 1 else told


def _errors(errors: Mapping[str, int]) -> Iterator[str]:
    told = sorted(errors.items(), key=lambda item: -item[1])
    for error, count in told[:MOST_ERRORS_TOLD]:
        yield error if count == 1 else f"{error} ({count} shards)"
    if len(told) > MOST_ERRORS_TOLD:
        yield f"and {len(told) - MOST_ERRORS_TOLD} errors more; summary.json has them"


def _beside(beside: Beside) -> str:
    told = f"{beside.name}: {beside.state}, {beside.done} {COMMITTED[beside.kind]}"
    if beside.of_these_rows is False:
        told += "; the run's rows have changed since"
    return told if beside.driver is None else f"{told}; {_driver(beside.driver)}"
