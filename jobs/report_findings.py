"""An audit as the report tells it: a card a finding, and what was tested and is clean."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from explainer.audit.verdicts import ACCUSED, Verdict, worst_of
from jobs.report_scan import Shown
from storage.audits import Audit

# Cards beyond these have no pictures: a page that holds thousands opens nowhere.
MOST_PICTURED = 40
EXAMPLES = 3
CONTROLS = {
    "flips": "with the cue",
    "flips_noise": "random pixels in its place",
    "flips_other_class": "the same region of other classes",
    "flips_elsewhere": "another region of the same images",
}
SHORT = {
    Verdict.SHORTCUT: "shortcut",
    Verdict.COMPACT_CUE: "compact",
    Verdict.CONTEXT: "context",
    Verdict.UNTESTABLE: "untestable",
    Verdict.CLEARED: "cleared",
}
RELATION = {
    Verdict.SHORTCUT: "rests on",
    Verdict.COMPACT_CUE: "may rest on",
    Verdict.CONTEXT: "goes by",
}
NEXT = {
    Verdict.SHORTCUT: (
        "Look at the carriers. Take the cue out of the class's training images, or put it into "
        "other classes' as well; train again, explain the same images, and let saliency compare "
        "say whether the finding is gone. Until then expect the accuracy that is told above for "
        "images without it."
    ),
    Verdict.COMPACT_CUE: (
        "Look whether the cue is the object itself. If it is, the class is well; if it is not, "
        "treat it as a shortcut."
    ),
    Verdict.CONTEXT: (
        "The model goes by what is around the object, or by its colours. Decide whether it may: "
        "if not, collect images of the class in other surroundings, and of other classes in these."
    ),
}


@dataclass(frozen=True)
class Card:
    """A finding, as a row of findings.parquet, and what the page shows of it.

    `carriers` and `others` are images of the class with the cue and without it.
    """

    row: Mapping[str, Any]
    carriers: tuple[Shown, ...] = ()
    others: tuple[Shown, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.row["verdict"])

    @property
    def slug(self) -> str:
        """The verdict as one word."""
        return SHORT[self.verdict]

    @property
    def relation(self) -> str:
        """What the verdict says that the class does with the cue."""
        return RELATION[self.verdict]

    @property
    def is_about_content(self) -> bool:
        return bool(self.row["kind"] == "content")

    @property
    def has_others(self) -> bool:
        """Whether any image of the class is without the cue: accuracy_of_others is 0 of none."""
        return bool(self.row["carriers"] < self.row["images"])

    @property
    def cue(self) -> str:
        """What the cue is, in words."""
        if self.row["kind"] not in ("content", "texture"):
            return f"the {self.row['kind']} of its images"
        place = "at one place" if self.row["is_fixed"] else "at varying places"
        return f"the same {self.row['kind']} {place}, {self.row['area']:.0%} of an image"

    @property
    def bars(self) -> list[tuple[str, float]]:
        """Shares of other classes' images that pastes turn into the class, the cue's first."""
        return [(told, self.row[name]) for name, told in CONTROLS.items() if _is(self.row[name])]

    @property
    def estimates(self) -> list[tuple[str, float, float, float]]:
        """Differences of shares with their 95% intervals: name, value, low and high."""
        told = {
            "lift": "flips beyond the strongest control",
            "drop": "carriers lost without the cue, beyond as much else",
            "excess": "beyond what the class's other images lose, or that these gain by it",
        }
        return [
            (words, *(self.row[f"{name}{end}"] for end in ("", "_low", "_high")))
            for name, words in told.items()
            if _is(self.row[name])
        ]

    @property
    def next_step(self) -> str:
        return NEXT[self.verdict]


@dataclass(frozen=True)
class Findings:
    """What an audit found. `rows` are those of findings.parquet, severest first; `carriers` are by
    class and cue rows of the manifest, the most alike first; `statistics` by class the rows of
    statistics.parquet; `told` is its findings.json."""

    audit: Audit
    rows: list[dict[str, Any]]
    carriers: Mapping[tuple[int, int], list[int]]
    statistics: Mapping[int, dict[str, Any]]
    told: Mapping[str, Any]
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, audit: Audit) -> "Findings":
        """The tables of an audit that has ended. Raises FileNotFoundError where one is gone."""
        carriers = audit.table(audit.carriers).sort_by([("likeness", "descending")])
        of_cue: dict[tuple[int, int], list[int]] = {}
        for row in carriers.select(["target", "cue", "row"]).to_pylist():
            of_cue.setdefault((row["target"], row["cue"]), []).append(row["row"])
        return cls(
            audit=audit,
            rows=audit.table(audit.findings).to_pylist(),
            carriers=of_cue,
            statistics={row["target"]: row for row in audit.table(audit.statistics).to_pylist()},
            told=json.loads(audit.findings_json.read()),
            summary=audit.run.read_summary() or {},
        )

    @property
    def cards(self) -> list[dict[str, Any]]:
        """The findings that ask for a look."""
        return [row for row in self.rows if row["cue"] is not None and row["verdict"] in ACCUSED]

    @property
    def missing(self) -> int:
        """Classes that an incomplete audit has not examined."""
        return int(self.summary.get("classes_missing", 0))

    @cached_property
    def of_class(self) -> dict[int, Verdict]:
        """The worst verdict on each class."""
        rows = ((r["target"], r["cue"], Verdict(r["verdict"])) for r in self.rows)
        return worst_of(rows)

    def classes(self, verdict: Verdict) -> list[int]:
        """Those of which this is the worst verdict."""
        return [target for target, worst in self.of_class.items() if worst is verdict]

    def cues_of(self, target: int) -> list[tuple[str, str]]:
        """Verdict and reason of everything that was found on a class."""
        return [(r["verdict"], r["reason"]) for r in self.rows if r["target"] == target]

    @cached_property
    def examples(self) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
        """For each pictured card rows of carriers and of the class's other images, candidates for
        the few that are shown."""
        chosen = {}
        for row in self.cards[:MOST_PICTURED]:
            target, key = row["target"], (row["target"], row["cue"])
            carry = self.carriers.get(key, [])
            others = [r for r in self.audit.read(target)["rows"] if r not in set(carry)]
            chosen[key] = (carry[: 2 * EXAMPLES], others[: 4 * EXAMPLES])
        return chosen

    @property
    def wanted(self) -> set[tuple[int, int]]:
        """Row and class of the maps that `card` needs."""
        return {
            (row, target)
            for (target, _), both in self.examples.items()
            for rows in both
            for row in rows
        }

    def card(self, row: Mapping[str, Any], shown: Mapping[tuple[int, int], Shown]) -> Card:
        """A finding with the images whose maps are there, those explained as the class first."""
        carry, others = self.examples.get((row["target"], row["cue"]), ([], []))
        return Card(
            row,
            tuple(_first(carry, row["target"], shown)),
            tuple(_first(others, row["target"], shown)),
        )


def _first(rows: list[int], target: int, shown: Mapping[tuple[int, int], Shown]) -> Iterator[Shown]:
    of_target = [shown[row, target] for row in rows if (row, target) in shown]
    taken = {image.row for image in of_target}
    first: dict[int, Shown] = {}  # of several targets
    for image in shown.values():
        first.setdefault(image.row, image)
    elsewhere = [first[row] for row in rows if row in first and row not in taken]
    yield from (of_target + elsewhere)[:EXAMPLES]


def _is(value: float | None) -> bool:
    return value is not None
