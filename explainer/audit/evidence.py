"""What an examination of a class yields: plain records, which become JSON and come back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from explainer.audit.cues import OF_WHOLE
from explainer.audit.interventions import Control
from explainer.audit.significance import Estimate


@dataclass(frozen=True)
class Carrier:
    """An image that holds a cue: its number in the sample, and the cue's cells, row-major."""

    image: int
    likeness: float
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Paste:
    """What pasting a cue does: shares of flips to the class, and how far they exceed the controls.

    `lift` is of flips over the strongest control, `shift` of the class's log-odds over the control
    that raises them most. `restored` is such a shift, too, of carriers that lost the cue and are
    given another carrier's. `gained` is such a shift of the class's other images that are given it,
    over each other's pixels or, where it moves, other classes'; None where it was not asked for.
    `pooled` are all of these shifts together.
    `p_value` is the least of those whose intervals are above 0, each the largest over its controls
    (of `pooled` beside the largest control), times how many may be asked for; else 1. `donors` say
    how many images the cue was taken from.
    """

    flips: float
    controls: Mapping[Control, float]
    lift: Estimate
    shift: Estimate
    restored: Estimate
    p_value: float
    donors: int
    gained: Estimate | None = None
    pooled: Estimate | None = None

    @property
    def shifts(self) -> tuple[Estimate, ...]:
        """Those that were asked for."""
        asked = (self.shift, self.restored, self.gained, self.pooled)
        return tuple(each for each in asked if each is not None)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Paste":
        """From what dataclasses.asdict made of one, through JSON or not."""
        controls = {Control(name): flips for name, flips in plain["controls"].items()}
        names = ("lift", "shift", "restored", "gained", "pooled")
        estimates = {name: plain[name] and Estimate(**plain[name]) for name in names}
        return cls(**{**plain, "controls": controls, **estimates})


@dataclass(frozen=True)
class Removal:
    """What removing a cue from its carriers does: shares still predicted as the class.

    `elsewhere`: where as much is removed from another place; of a large region, a texture or
    colours, where another carrier's takes its place; of a half-transparent mark, where it is put on
    again. `drop` is their difference, and `cost` that of the class's log-odds. All are means over
    fills.
    """

    without: float
    elsewhere: float
    drop: Estimate
    cost: Estimate
    images: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Removal":
        """From what dataclasses.asdict made of one, through JSON or not."""
        estimates = {name: Estimate(**plain[name]) for name in ("drop", "cost")}
        return cls(**{**plain, **estimates})


@dataclass(frozen=True)
class Others:
    """What becomes of the class's other images where the same is done to them as to carriers.

    Of content and background, `deficit`: how much more often they are right than carriers that lost
    the cue. `excess`: how many more of those that were, `right`, stay so than of such carriers, by
    the fill that tells most. `excess_cost`: how much more log-odds such carriers lose than those,
    by such a fill; None of fewer than two.

    Of what whole images hold, so many others, `right`, are given it instead: `excess` is how many
    more of all of them are right with carriers' than with each other's, `excess_cost` how much more
    log-odds they have, and `deficit` how much more often they are right with each other's than
    carriers with theirs.
    """

    deficit: Estimate
    excess: Estimate
    excess_cost: Estimate | None
    right: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Others":
        """From what dataclasses.asdict made of one, through JSON or not."""
        cost = plain["excess_cost"]
        estimates = {name: Estimate(**plain[name]) for name in ("deficit", "excess")}
        return cls(**{**plain, **estimates, "excess_cost": cost and Estimate(**cost)})


@dataclass(frozen=True)
class CueEvidence:
    """A cue with its interventions; None where too few carriers are left to test it on.

    Pastes and removals are also None where the class's other images clear it without them.
    `kind` and `gap`: see Cue. `area`: the share of an image that it covers. `carrier_share` is over
    the sampled images of the class; `accuracy_of_carriers` and `_of_others` are shares that are
    predicted as the class. `others` is None where hardly any image is surely without the cue.
    """

    kind: Literal["content", "background", "texture", "colours"]
    origin: str
    is_fixed: bool
    area: float
    threshold: float
    carriers: tuple[Carrier, ...]
    carrier_share: Estimate
    accuracy_of_carriers: Estimate
    accuracy_of_others: Estimate
    paste: Paste | None
    removal: Removal | None
    others: Others | None
    gap: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether it is content at varying places, which may lie on the object."""
        return self.kind == "content" and not self.is_fixed

    @property
    def is_of_whole(self) -> bool:
        """See Cue."""
        return self.kind in OF_WHOLE

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "CueEvidence":
        """From what dataclasses.asdict made of one, through JSON or not."""
        estimates = ("carrier_share", "accuracy_of_carriers", "accuracy_of_others")
        paste, removal, others = plain["paste"], plain["removal"], plain["others"]
        read = {name: Estimate(**plain[name]) for name in estimates} | {
            "carriers": tuple(
                Carrier(c["image"], c["likeness"], tuple(c["cells"])) for c in plain["carriers"]
            ),
            "paste": paste and Paste.of(paste),
            "removal": removal and Removal.of(removal),
            "others": others and Others.of(others),
        }
        return cls(**{**plain, **read})


@dataclass(frozen=True)
class ClassEvidence:
    """What an examination of a class yields. `untestable` says why nothing could be tested.

    `images` were sampled, `explained` of them are predicted as the class; `candidates` are cues
    that were found, of which few are tested: see examination.py; `passes` is what it cost, in
    images through the model. `apart`: see colours.Side.
    """

    target: int
    images: int
    explained: int
    candidates: int
    passes: int
    cues: tuple[CueEvidence, ...] = ()
    untestable: str | None = None
    apart: float = 0.5

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "ClassEvidence":
        """From what dataclasses.asdict made of one, through JSON or not."""
        return cls(**{**plain, "cues": tuple(CueEvidence.of(cue) for cue in plain["cues"])})
