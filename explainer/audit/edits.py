"""How a cue of each kind is taken from images and given to others.

Pixels are filled and pasted, textures are replaced where they lie, and colours of whole images are
changed for others'.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from explainer.audit.colours import COLOURS, levels, recoloured
from explainer.audit.cues import BACKGROUND, Cue
from explainer.audit.interventions import Control, Fill, filled, have_elsewhere, moved
from explainer.audit.overlays import Overlay
from explainer.audit.textures import TEXTURE

Crops = UInt8[Tensor, "images 3 height width"]
Masks = Bool[Tensor, "images height width"]
Recipients = UInt8[Tensor, "recipients 3 height width"]
Donors = UInt8[Tensor, "donors 3 height width"]
OfDonors = Bool[Tensor, "donors height width"]


@dataclass(frozen=True)
class Edit:
    """What is done to images for a kind of cue, by crops, masks and, where asked for, others.

    `give` yields the recipients with donors' cues, as many rounds as there are donors for each, and
    `put` what else is put in their place, by the same arguments. `take` yields crops without the
    cue, once a fill, and `spare` as much done to crops that keep it. `controls` are those of giving
    it.
    """

    give: Callable[[Recipients, Donors, OfDonors], Iterator[Recipients]]
    put: Callable[[Recipients, Donors, OfDonors], Iterator[Recipients]]
    take: Callable[[Crops, Masks, Crops], Iterator[Crops]]
    spare: Callable[[Crops, Masks, Crops, torch.Generator], Iterator[Crops]]
    controls: tuple[Control, ...]


def edit_of(cue: Cue) -> Edit:
    """How a cue is taken and given: half-transparent marks alone, others with their pixels."""
    return _EDITS[cue.kind] if cue.overlay is None else _over(cue.overlay)


def removal_of(cue: Cue, masks: Masks) -> Edit:
    """How a cue is taken from images, and what is done to them beside it.

    Where what lies at one place leaves no elsewhere these are other classes' pixels and another
    carrier's: Mixed-Rand and Mixed-Same of Xiao et al., Noise or Signal, ICLR 2021.
    """
    edit = edit_of(cue)
    if cue.kind == COLOURS or cue.overlay is not None or not cue.is_fixed or have_elsewhere(masks):
        return edit
    return replace(edit, take=_replace, spare=_exchange)


def _over(overlay: Overlay) -> Edit:
    """What is taken off alone leaves what was behind it, and is put on again beside that.

    What is put in its place, or elsewhere, is half transparent, too: it hides no more of an object.
    """

    def give(recipients: Recipients, donors: Donors, masks: OfDonors) -> Iterator[Recipients]:
        del donors  # all of which hold the same
        return (overlay.over(recipients, places) for places in masks.split(len(recipients)))

    def put(recipients: Recipients, donors: Donors, masks: OfDonors) -> Iterator[Recipients]:
        count = len(recipients)
        pairs = zip(donors.split(count), masks.split(count), strict=True)
        return (overlay.blended(recipients, crops, places) for crops, places in pairs)

    def take(crops: Crops, masks: Masks, others: Crops) -> Iterator[Crops]:
        del others
        yield overlay.removed(crops, masks)

    def spare(
        crops: Crops, masks: Masks, _others: Crops, _generator: torch.Generator
    ) -> Iterator[Crops]:
        yield overlay.over(overlay.removed(crops, masks), masks)

    return replace(_PIXELS, give=give, put=put, take=take, spare=spare)


def _paste(recipients: Recipients, donors: Donors, masks: OfDonors) -> Iterator[Recipients]:
    count = len(recipients)
    for crops, places in zip(donors.split(count), masks.split(count), strict=True):
        yield torch.where(places[:, None], crops, recipients)


def cover(crops: Crops, masks: Masks, others: Crops) -> Iterator[Crops]:
    """Crops that hold a cue or not, filled each way: around an image, too, either may cost less."""
    return (filled(crops, masks, fill, others) for fill in Fill)


def _fill_elsewhere(
    crops: Crops, masks: Masks, others: Crops, generator: torch.Generator
) -> Iterator[Crops]:
    return cover(crops, moved(masks, generator), others)


def _recolour(recipients: Recipients, donors: Donors, _masks: OfDonors) -> Iterator[Recipients]:
    return (recoloured(recipients, each) for each in levels(donors).split(len(recipients)))


def _change_colours(crops: Crops, _masks: Masks, others: Crops) -> Iterator[Crops]:
    yield recoloured(crops, levels(others))


def _exchange_colours(
    crops: Crops, _masks: Masks, _others: Crops, _generator: torch.Generator
) -> Iterator[Crops]:
    """Among the images themselves, which all have the class's colours."""
    yield recoloured(crops, levels(crops.roll(1, 0)))


def _replace(crops: Crops, masks: Masks, others: Crops) -> Iterator[Crops]:
    yield filled(crops, masks, Fill.OTHER_CLASS, others)


def _exchange(
    crops: Crops, masks: Masks, _others: Crops, _generator: torch.Generator
) -> Iterator[Crops]:
    """Among the images themselves, which all hold the cue."""
    yield filled(crops, masks, Fill.OTHER_CLASS, crops.roll(1, 0))


IN_OTHERS = (Control.NOISE, Control.OTHER_CLASS, Control.ELSEWHERE)
_PIXELS = Edit(_paste, _paste, cover, _fill_elsewhere, IN_OTHERS)
_EDITS: Mapping[str, Edit] = {
    "content": _PIXELS,
    BACKGROUND: _PIXELS,
    TEXTURE: Edit(_paste, _paste, _replace, _exchange, (Control.OTHER_CLASS,)),
    COLOURS: Edit(
        _recolour,
        _recolour,
        _change_colours,
        _exchange_colours,
        (Control.OTHER_CLASS,),
    ),
}
