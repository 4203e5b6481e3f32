"""The log of chaos.py as a table in Markdown: a line a kind of fault, and one for all."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Record = Mapping[str, Any]
HELD = 5  # a second driver's code
_HEAD = (
    "| fault | rounds | runs resumed | median s | rows lost | duplicated | different "
    "| torn objects | rounds failed |"
)


def report(records: Sequence[Record]) -> str:
    """The table; a round with two faults counts for both, and once in the last line."""
    kinds = sorted({kind for record in records for kind in record["happened"]})
    lines = [_HEAD, "|" + "---|" * (_HEAD.count("|") - 1)]
    lines += [_line(k, [r for r in records if k in r["happened"]]) for k in kinds]
    idle = [record for record in records if not record["happened"]]
    lines += [_line("none in time", idle)] if idle else []
    return "\n".join([*lines, _line("all", records)])


def _line(name: str, records: Sequence[Record]) -> str:
    resumed = sum(len([c for c in record["codes"] if c != HELD]) > 1 for record in records)
    sums = [sum(r[key] for r in records) for key in ("lost", "duplicated", "different", "torn")]
    seconds = median(record["seconds"] for record in records) if records else 0
    failed = sum(bool(record["problems"]) for record in records)
    cells = [name, len(records), resumed, f"{seconds:.0f}", *sums, failed]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
