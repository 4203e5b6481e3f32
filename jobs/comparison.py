"""What two runs of the same images have different: the record that terminal, files and reports
show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from explainer.audit.significance import Estimate, gain, mcnemar
from explainer.drift import HeatmapDrift, MapsDrift
from storage.pairs import Outcomes, Totals

# As everywhere in the audit (explainer/audit/verdict.py).
MOST_Q = 0.05
# Any other weights move maps a little, and of enough images that is significant: so much of the
# mass has to lie in other cells where a class is said to look elsewhere.
LEAST_MOVED = 0.05


class Change(StrEnum):
    """What became of a finding from run A to run B."""

    NEW = "new"
    CHANGED = "changed"
    KEPT = "kept"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Side:
    """One of the two runs; `audit` names its last finished audit, if any."""

    run: str
    root: str
    model: str
    weights: str
    target: str
    grid: tuple[int, int]
    rows: int
    statuses: Mapping[str, int]
    audit: str | None


@dataclass(frozen=True)
class Setting:
    """A setting that differs, with both values as JSON."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class StatusChange:
    """How many images of both runs had one status in A and have another in B."""

    before: str
    after: str
    images: int


@dataclass(frozen=True)
class Accuracy:
    """Answers on images that are labelled alike and predicted in both runs.

    `difference` is B's accuracy less A's (Bonett and Price's interval for pairs), `p_value`
    McNemar's exact one, `q_value` over all classes (Benjamini and Hochberg), None of all images.
    """

    images: int
    right_a: int
    right_b: int
    became_right: int
    became_wrong: int
    difference: Estimate
    p_value: float
    q_value: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the class's accuracy has changed, over all classes."""
        return self.q_value is not None and self.q_value < MOST_Q


def accuracy_of(outcomes: Outcomes) -> Accuracy:
    """Shares, interval and p-value from counts."""
    changed = outcomes.became_right, outcomes.became_wrong
    return Accuracy(
        images=outcomes.images,
        right_a=outcomes.right_a,
        right_b=outcomes.right_b,
        became_right=outcomes.became_right,
        became_wrong=outcomes.became_wrong,
        difference=gain(*changed, outcomes.images),
        p_value=mcnemar(*changed),
    )


@dataclass(frozen=True)
class Heatmaps:
    """The class's heatmaps in both runs, each over all images explained as the class there."""

    images_a: int
    images_b: int
    drift: HeatmapDrift


@dataclass(frozen=True)
class Maps:
    """Maps of the class, of images that have one in both runs.

    `median_correlation` is over all of them; `drift` over `sampled` of them, drawn by image_id.
    """

    images: int
    median_correlation: float | None
    sampled: int
    drift: MapsDrift
    q_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the maps lie elsewhere on average, over all classes."""
        return self.q_value < MOST_Q


@dataclass(frozen=True)
class ClassComparison:
    """What changed of one class; None is what there is nothing to tell from."""

    name: str
    accuracy: Accuracy | None
    heatmaps: Heatmaps | None
    maps: Maps | None

    @property
    def looks_elsewhere(self) -> bool:
        """Whether its maps moved, significantly and by LEAST_MOVED, and its accuracy did not."""
        is_as_good = self.accuracy is not None and not self.accuracy.is_significant
        moved = self.maps.drift.moved if self.maps and self.maps.is_significant else 0.0
        return is_as_good and moved >= LEAST_MOVED


@dataclass(frozen=True)
class Carriers:
    """Carriers of a cue that are labelled alike in both runs, and how many were right."""

    images: int
    right_a: int
    right_b: int


@dataclass(frozen=True)
class CueVerdict:
    """What an audit says of a cue: its `lift` when pasted, and the share of its carriers that are
    right without it; None where that was not tested."""

    verdict: str
    lift: float | None
    right_without: float | None


@dataclass(frozen=True)
class FindingChange:
    """A cue with a verdict other than cleared in at least one of the runs' audits.

    `before` and `after` are None where the audit has no such cue; `reason` says what that audit
    says of the class instead. `overlap` is the intersection of its carriers in both audits over
    their union, of the images that both looked at.
    """

    class_name: str
    kind: str
    change: Change
    before: CueVerdict | None
    after: CueVerdict | None
    overlap: float | None
    carriers: Carriers
    reason: str

    @property
    def is_new_shortcut(self) -> bool:
        """Whether it is a shortcut in B and was none in A, as far as is known."""
        verdicts = [None if cue is None else cue.verdict for cue in (self.before, self.after)]
        return verdicts[1] == "shortcut" != verdicts[0]


@dataclass(frozen=True)
class Comparison:
    """Two runs, their images joined by image_id.

    `settings` are those that differ, `remarks` what could not be compared, and why; `classes` have
    the largest change of accuracy first, `findings` what is new. `untested` are classes on which
    A's audit has a verdict and B's has none.
    """

    a: Side
    b: Side
    settings: tuple[Setting, ...]
    remarks: tuple[str, ...]
    images: Totals
    statuses: tuple[StatusChange, ...]
    accuracy: Accuracy
    classes: tuple[ClassComparison, ...]
    findings: tuple[FindingChange, ...]
    untested: tuple[str, ...]

    @property
    def new_shortcuts(self) -> list[FindingChange]:
        """What --fail-on new-shortcut fails on."""
        return [finding for finding in self.findings if finding.is_new_shortcut]
