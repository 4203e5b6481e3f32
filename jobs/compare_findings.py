"""What became of the findings of one audit in another: cues are anonymous, carriers have names."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from explainer.audit.verdicts import ACCUSED, Verdict, worst_of
from jobs.comparison import Carriers, Change, CueVerdict, FindingChange
from storage.audits import Audit
from storage.pairs import Pair, Pairs, Side

# A cue is the same where its carriers overlap by half.
LEAST_OVERLAP = 0.5
ClassKey = Callable[[int, str], Hashable]
Known = tuple[Mapping[int, Pair], Mapping[int, Pair]]


@dataclass(frozen=True)
class Cue:
    """A cue of one audit, what it says of it, and the rows of its run that carry it."""

    kind: str
    found: CueVerdict
    rows: frozenset[int]

    @property
    def is_accused(self) -> bool:
        """Whether it is a finding."""
        return self.found.verdict in ACCUSED


@dataclass(frozen=True)
class Judged:
    """What one audit says of one class: its worst verdict, and its cues."""

    target: int
    name: str
    verdict: str
    cues: tuple[Cue, ...]

    @property
    def is_accused(self) -> bool:
        """Whether a cue of the class is a finding."""
        return any(cue.is_accused for cue in self.cues)


@dataclass(frozen=True)
class FindingsCompared:
    """What became of findings, new ones first, and the classes that only A's audit judged."""

    changes: tuple[FindingChange, ...]
    untested: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A cue of either audit or of both, and how far their carriers overlap."""

    a: Cue | None
    b: Cue | None
    overlap: float | None = None


def compare_findings(
    audits: tuple[Audit, Audit], pairs: Pairs, keys: tuple[ClassKey, ClassKey]
) -> FindingsCompared:
    """Match the cues of two audits, class by class; `keys` are equal where classes are the same.

    Two cues are the same where they are of one class and one kind, and of the images that both
    audits looked at as many carry both as make up half of those that carry either.
    """
    classes = _judged(audits[0], keys[0]), _judged(audits[1], keys[1])
    accused = {k for judged in classes for k, of in judged.items() if of.is_accused}
    changes: list[FindingChange] = []
    for number in sorted(accused, key=str):
        a, b = classes[0].get(number), classes[1].get(number)
        known = _known(audits[0], a, "a", pairs), _known(audits[1], b, "b", pairs)
        changes += _of_class(a, b, known)
    order = list(Change)
    changes.sort(key=lambda f: (order.index(f.change), _severity(f), f.class_name))
    untested = [
        judged.name
        for number, judged in classes[0].items()
        if judged.verdict != Verdict.UNTESTABLE
        and (number not in classes[1] or classes[1][number].verdict == Verdict.UNTESTABLE)
    ]
    return FindingsCompared(tuple(changes), tuple(sorted(untested)))


def _judged(audit: Audit, key: ClassKey) -> dict[Hashable, Judged]:
    """What an audit says of each class."""
    rows: dict[tuple[int, int], set[int]] = {}
    for carrier in audit.table(audit.carriers).to_pylist():
        rows.setdefault((carrier["target"], carrier["cue"]), set()).add(carrier["row"])
    of_class: dict[int, list[Mapping[str, Any]]] = {}
    for finding in audit.table(audit.findings).to_pylist():
        of_class.setdefault(finding["target"], []).append(finding)
    told = (
        (target, found["cue"], Verdict(found["verdict"]))
        for target, all_found in of_class.items()
        for found in all_found
    )
    worst = worst_of(told)
    return {
        key(target, found[0]["target_name"]): Judged(
            target=target,
            name=found[0]["target_name"],
            verdict=worst[target],
            cues=tuple(
                Cue(f["kind"], _verdict(f), frozenset(rows.get((target, f["cue"]), ())))
                for f in found
                if f["cue"] is not None
            ),
        )
        for target, found in of_class.items()
    }


def _verdict(found: Mapping[str, Any]) -> CueVerdict:
    without = found["kept_without"]
    if without is not None:
        without *= found["accuracy_of_carriers"]
    return CueVerdict(found["verdict"], found["lift"], without)


def _known(audit: Audit, judged: Judged | None, side: Side, pairs: Pairs) -> Mapping[int, Pair]:
    """The images of both runs among those of a class that an audit looked at, by its run's row."""
    if judged is None:
        return {}
    return pairs.images(side, np.array(audit.read(judged.target)["rows"], np.int64))


def _of_class(a: Judged | None, b: Judged | None, known: Known) -> list[FindingChange]:
    """What became of a class's cues; those that neither audit accuses are left out."""
    common = set(known[0].values()) & set(known[1].values())
    matches = _matches(a.cues if a else (), b.cues if b else (), known, common)
    return [
        _change(match, a, b, known)
        for match in matches
        if any(cue is not None and cue.is_accused for cue in (match.a, match.b))
    ]


def _matches(
    ours: Sequence[Cue],
    theirs: Sequence[Cue],
    known: Known,
    common: set[Pair],
) -> list[Match]:
    """Each cue with its counterpart, the largest overlaps first, or alone."""
    held = [
        [{of[row] for row in cue.rows if row in of} & common for cue in cues]
        for cues, of in zip((ours, theirs), known, strict=True)
    ]
    overlaps = sorted(
        (
            (len(held[0][i] & held[1][j]) / len(held[0][i] | held[1][j]), i, j)
            for i in range(len(ours))
            for j in range(len(theirs))
            if ours[i].kind == theirs[j].kind and held[0][i] | held[1][j]
        ),
        key=lambda each: (-each[0], each[1:]),
    )
    partner: dict[int, tuple[int, float]] = {}
    for overlap, i, j in overlaps:
        is_free = i not in partner and all(j != other for other, _ in partner.values())
        if is_free and overlap >= LEAST_OVERLAP:
            partner[i] = j, overlap
    matched = {j for j, _ in partner.values()}
    found = [
        Match(ours[i], theirs[partner[i][0]], partner[i][1])
        if i in partner
        else Match(ours[i], None)
        for i in range(len(ours))
    ]
    return found + [Match(None, theirs[j]) for j in range(len(theirs)) if j not in matched]


def _change(match: Match, a: Judged | None, b: Judged | None, known: Known) -> FindingChange:
    cue, of = (match.a, known[0]) if match.a is not None else (match.b, known[1])
    assert cue is not None
    common = set(known[0].values()) & set(known[1].values())
    change, reason = _told(match, b if match.a is not None else a, len(common))
    images = [of[row] for row in cue.rows if row in of and of[row].is_labelled]
    return FindingChange(
        class_name=(a or b).name,  # type: ignore[union-attr] # one of them has the cue
        kind=cue.kind,
        change=change,
        before=match.a.found if match.a else None,
        after=match.b.found if match.b else None,
        overlap=match.overlap,
        carriers=Carriers(
            len(images),
            sum(image.is_right_a for image in images),
            sum(image.is_right_b for image in images),
        ),
        reason=reason,
    )


def _told(match: Match, other: Judged | None, common: int) -> tuple[Change, str]:
    """What became of a cue, and why; `other` is what the audit without it says of the class."""
    if match.a is not None and match.b is not None:
        is_kept = match.a.found.verdict == match.b.found.verdict
        return (
            Change.KEPT if is_kept else Change.CHANGED,
            f"its carriers overlap by {match.overlap:.0%}",
        )
    name = "B" if match.a is not None else "A"
    if other is None:
        return Change.UNKNOWN, f"the audit of {name} has not examined this class"
    if other.verdict == Verdict.UNTESTABLE:
        return Change.UNKNOWN, f"the audit of {name} could not test this class"
    if not common:
        return Change.UNKNOWN, "the two audits looked at no image of this class in common"
    change = Change.GONE if match.a is not None else Change.NEW
    return change, f"the audit of {name} has no such cue; its verdict on the class: {other.verdict}"


def _severity(finding: FindingChange) -> int:
    cues = [cue for cue in (finding.before, finding.after) if cue is not None]
    order = list(Verdict)
    return min(order.index(Verdict(cue.verdict)) for cue in cues)
