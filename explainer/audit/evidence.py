"""What an examination of a class yields: plain records, which become JSON and come back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    that raises them most; `p_value` is that of the shift, the largest over the controls. `donors`
    say how many images the cue was taken from.
    """

    flips: float
    controls: Mapping[Control, float]
    lift: Estimate
    shift: Estimate
    p_value: float
    donors: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Paste":
        """From what dataclasses.asdict made of one, through JSON or not."""
        controls = {Control(name): flips for name, flips in plain["controls"].items()}
        estimates = {name: Estimate(**plain[name]) for name in ("lift", "shift")}
        return cls(**{**plain, "controls": controls, **estimates})


@dataclass(frozen=True)
class Removal:
    """What removing a cue from its carriers does: shares still predicted as the class.

    `elsewhere`: where as much is removed from another place; of a large region, where the same is
    removed from other classes' images, which are to keep theirs. `drop` is their difference, and
    `cost` that of the class's log-odds. All are means over fills.
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
class CueEvidence:
    """A cue with its interventions; None where too few carriers are left to test it on.

    `kind`: see Cue. `area`: the share of an image that it covers. `carrier_share` is over the
    sampled images of the class; `accuracy_of_carriers` and `_of_others` are shares that are
    predicted as the class. `deficit`: how much more often the class's other images are right than
    its carriers without the cue; None where hardly any image is without it.
    """

    kind: Literal["content", "background"]
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
    deficit: Estimate | None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "CueEvidence":
        """From what dataclasses.asdict made of one, through JSON or not."""
        estimates = ("carrier_share", "accuracy_of_carriers", "accuracy_of_others")
        paste, removal, deficit = plain["paste"], plain["removal"], plain["deficit"]
        read = {name: Estimate(**plain[name]) for name in estimates} | {
            "carriers": tuple(
                Carrier(c["image"], c["likeness"], tuple(c["cells"])) for c in plain["carriers"]
            ),
            "paste": paste and Paste.of(paste),
            "removal": removal and Removal.of(removal),
            "deficit": deficit and Estimate(**deficit),
        }
        return cls(**{**plain, **read})


@dataclass(frozen=True)
class ClassEvidence:
    """What an examination of a class yields. `untestable` says why nothing could be tested.

    `images` were sampled, `explained` of them are predicted as the class; `candidates` are cues
    that were found, of which the best are tested where a first look at them shows an effect;
    `passes` is what it cost, in images through the model.
    """

    target: int
    images: int
    explained: int
    candidates: int
    passes: int
    cues: tuple[CueEvidence, ...] = ()
    untestable: str | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "ClassEvidence":
        """From what dataclasses.asdict made of one, through JSON or not."""
        return cls(**{**plain, "cues": tuple(CueEvidence.of(cue) for cue in plain["cues"])})
