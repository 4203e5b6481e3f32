"""Content that images of a class share, wherever it lies: windows that look alike, found by pixels.

Images are compared in colour, reduced to a few pixels a token, windows by normalised
cross-correlation (Lewis, Fast Normalized Cross-Correlation, 1995), which neither brightness nor
contrast changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

# Across a reduced image about so many pixels, and at most so many of one token.
ACROSS, MOST_OF_A_CELL = 56, 4
# Flat content, such as sky, correlates with anything flat: its noise is no pattern.
LEAST_CONTRAST, FLAT = 0.03, 0.02
# Most images of a class that hold the same window; least correlation, and lead over other classes.
MOST_ALIKE, LEAST_CORRELATION, LEAST_LEAD = 12, 0.6, 0.02
LEAST_ALIKE = 3
# Windows at one place are so far apart: a quarter of their side.
ALIGNED_STEPS = 4


@dataclass(frozen=True)
class Window:
    """A square of one image by its top left pixel, in pixels of the reduced image."""

    image: int
    top: int
    left: int


@dataclass(frozen=True)
class Seed:
    """A window, first, and the most similar ones of other images of its class.

    `score`: the correlation that LEAST_ALIKE images hold, less the one that other classes' do.
    """

    origin: str
    side: int
    windows: tuple[Window, ...]
    score: float


@dataclass(frozen=True)
class Patches:
    """All windows of some images, centred and of norm 1, row by row; `contrast` is their spread."""

    values: Float[Tensor, "images places pixels"]
    contrast: Float[Tensor, "images places"]
    across: int

    def at(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """The values [windows, pixels] and the contrast [windows] of some."""
        images = torch.tensor([window.image for window in windows])
        places = torch.tensor([window.top * self.across + window.left for window in windows])
        return self.values[images, places], self.contrast[images, places]


def pixels_of_a_cell(grid: tuple[int, int]) -> int:
    """How many pixels across a token is in reduced images: 4 of 14, 2 of 37."""
    return min(MOST_OF_A_CELL, max(1, round(ACROSS / min(grid))))


def reduced(
    crops: UInt8[Tensor, "images 3 height width"], grid: tuple[int, int], cell: int
) -> Float[Tensor, "images 3 small_height small_width"]:
    """Crops in [0, 1] at so many pixels a cell."""
    size = (grid[0] * cell, grid[1] * cell)
    images = crops.float() / 255
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def widened(
    masks: Bool[Tensor, "images height width"], grid: tuple[int, int]
) -> Bool[Tensor, "images height width"]:
    """Masks that reach further by most of a pixel in which cues are looked for."""
    reach = masks.shape[-2] * 2 // (grid[0] * pixels_of_a_cell(grid) * 3)
    wide = functional.max_pool2d(masks[:, None].float(), 2 * reach + 1, 1, reach)
    return wide[:, 0] > 0


def patches(images: Float[Tensor, "images 3 height width"], side: int) -> Patches:
    """The windows of `side` pixels of some images."""
    flat = functional.unfold(images, side)
    values = flat.unflatten(1, (3, side * side))
    values = (values - values.mean(2, keepdim=True)).flatten(1, 2)
    norm = values.norm(dim=1)
    pixels = values.shape[1]
    values = values / norm.clamp_min(FLAT * pixels**0.5)[:, None]
    across = images.shape[-1] - side + 1
    return Patches(values.movedim(1, 2).contiguous(), norm / pixels**0.5, across)


def seeds(
    origin: str, windows: Sequence[Window], side: int, mine: Patches, theirs: Patches
) -> list[Seed]:
    """What images of a class hold of some of their windows, best first.

    Left out is what is flat, and what LEAST_ALIKE images do not hold alike.
    `mine` are patches of the class, which `windows` lie in; `theirs` of other classes.
    """
    windows = _with_contrast(windows, mine)
    if not windows or len(mine.values) < LEAST_ALIKE:
        return []
    values, _ = mine.at(windows)
    similar, places = _best(values, mine)
    own = torch.tensor([window.image for window in windows])
    similar[torch.arange(len(windows)), own] = 2.0  # comes first
    alike = similar.topk(min(MOST_ALIKE, similar.shape[1]), 1)
    held_by_enough = alike.values[:, LEAST_ALIKE - 1]
    chosen = torch.nonzero(held_by_enough >= LEAST_CORRELATION).flatten()
    others = _best(values[chosen], theirs)[0].topk(2, 1).values[:, 1]
    least = (others + LEAST_LEAD).clamp_min(LEAST_CORRELATION)
    counts = (alike.values[chosen] >= least[:, None]).sum(1).clamp_min(LEAST_ALIKE)
    scores = held_by_enough[chosen] - others
    found = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        number = int(chosen[index])
        members = alike.indices[number, : int(counts[index])].tolist()
        held = (divmod(int(places[number, image]), mine.across) for image in members[1:])
        rest = [Window(image, *place) for image, place in zip(members[1:], held, strict=True)]
        found.append(Seed(origin, side, (windows[number], *rest), float(scores[index])))
    return found


def aligned(
    origin: str,
    side: int,
    mine: Float[Tensor, "images 3 height width"],
    theirs: Float[Tensor, "others 3 height width"],
) -> list[Seed]:
    """What images of a class hold alike at one place, best first: at most one seed a place.

    With one place to look at, all images can be compared, so that a few of many are found.
    """
    if min(len(mine), len(theirs)) < LEAST_ALIKE:
        return []
    step = max(1, side // ALIGNED_STEPS)
    found: list[Seed] = []
    for top in steps(mine.shape[-2] - side, step):
        ours, others = (
            patches(images[..., top : top + side, :], side) for images in (mine, theirs)
        )
        at_places = (
            _at_place(origin, side, Window(0, top, left), ours, others)
            for left in steps(ours.across - 1, step)
        )
        found += [seed for seed in at_places if seed is not None]
    return sorted(found, key=lambda seed: -seed.score)


def steps(last: int, step: int) -> list[int]:
    """From 0 to the last by steps, the last one shorter where they do not fit."""
    return [*range(0, last, step), last]


def _at_place(origin: str, side: int, place: Window, ours: Patches, others: Patches) -> Seed | None:
    """The best seed of one place, where one is alike; patches are those of its height."""
    mine, theirs = ours.values[:, place.left], others.values[:, place.left]
    similar = (mine @ mine.T).fill_diagonal_(2.0)  # comes first
    alike = similar.topk(min(MOST_ALIKE, len(similar)), 1)
    strange = (mine @ theirs.T).topk(2, 1).values[:, 1]
    least = (strange + LEAST_LEAD).clamp_min(LEAST_CORRELATION)
    counts = (alike.values >= least[:, None]).sum(1)
    scores = alike.values[:, LEAST_ALIKE - 1] - strange
    scores[(ours.contrast[:, place.left] < LEAST_CONTRAST) | (counts < LEAST_ALIKE)] = -1.0
    best = int(scores.argmax())
    if scores[best] <= 0:
        return None
    members = alike.indices[best, : int(counts[best])].tolist()
    windows = tuple(replace(place, image=member) for member in members)
    return Seed(origin, side, windows, float(scores[best]))


def _with_contrast(windows: Sequence[Window], images: Patches) -> Sequence[Window]:
    """Those that are not flat."""
    if not windows:
        return []
    _, contrast = images.at(windows)
    return [w for w, c in zip(windows, contrast.tolist(), strict=True) if c >= LEAST_CONTRAST]


def _best(
    values: Float[Tensor, "windows pixels"], images: Patches
) -> tuple[Float[Tensor, "windows images"], Int[Tensor, "windows images"]]:
    """Each image's largest correlation with each window, and its place."""
    best = [(values @ places.T).max(1) for places in images.values]
    return (
        torch.stack([each.values for each in best], 1),
        torch.stack([each.indices for each in best], 1),
    )


def distinct(found: Sequence[Seed], most: int) -> list[Seed]:
    """The best seeds, at most so many: of those that overlap in the same images, the first."""
    kept: list[Seed] = []
    for seed in found:
        if len(kept) == most:
            break
        if not any(_same(seed, other) for other in kept):
            kept.append(seed)
    return kept


def _same(seed: Seed, other: Seed) -> bool:
    """Whether two images, or one that both were cut from, hold both at one place."""
    of_other = {window.image: window for window in other.windows}
    near = [
        window.image
        for window in seed.windows
        if (twin := of_other.get(window.image)) is not None
        and max(abs(window.top - twin.top), abs(window.left - twin.left)) < seed.side
    ]
    return len(near) >= 2 or seed.windows[0].image in near
