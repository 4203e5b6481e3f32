"""A texture as a cue: fine waves of one direction and length, wherever they lie and begin.

No two images hold such a texture alike, as it moves. Their spectra do: each has a peak at the same
frequency, far above what surrounds it, whatever else is in the image.
"""

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from explainer.audit.cues import LEAST_STRANGERS, Cue
from explainer.audit.regions import background, to_pixels
from explainer.audit.sample import ClassSample

TEXTURE = "texture"
# A carrier's waves are stronger than those of this share of other classes' images; no cue where
# fewer of the class's images are carriers, in either half: of one it is chosen, by chance, too.
OF_OTHERS, LEAST_SHARE, LEAST_CARRIERS = 0.99, 0.15, 4
# Whose are stronger than those of this share may hold the texture, too, where it hardly shows.
OF_ABSENT = 0.9
MOST_WITHIN = 1.1  # waves in the middle, to those around it
ROUNDS, PEAKS = 3, 6
# A frequency's power is compared with that of frequencies around it, in steps of the transform.
SMOOTH, AROUND = 3, 15
LEAST_POWER, LEAST_SPREAD = 1e-8, 0.1
# Frequencies that belong to a peak; waves are where they are half as strong as at their strongest.
REACH, OF_STRONGEST, STRONGEST = 2, 0.5, 0.9
OF_TOKEN, SPAN = 4, 5  # parts of a token, and over how many of them strength is averaged
PART = 64  # images that are transformed at once


def texture(sample: ClassSample, others: UInt8[Tensor, "others 3 height width"]) -> Cue | None:
    """The waves that most tell images of a class from others; None where few images have them.

    They are found on the discovery half, and are to be in the other, too; and not more of them in
    the middle than around it, where they would be the object's own.
    """
    behind = to_pixels(background(sample.grid)[None], sample.size)[0]
    if len(others) < LEAST_STRANGERS or behind.all():
        return None
    mine, theirs = peaks(sample.crops), peaks(others)
    typical, spread = theirs.mean(0), theirs.std(0).clamp_min(LEAST_SPREAD)
    mine, theirs = ((each - typical).div(spread).flatten(1) for each in (mine, theirs))
    fine = (frequencies(sample.size) * _across(sample) >= 1).flatten()
    members = sample.discovery
    for _ in range(ROUNDS):
        strength = mine[members].mean(0).masked_fill(~fine, float("-inf"))
        top = strength.topk(PEAKS).indices
        likeness, of_others = mine[:, top].mean(1), theirs[:, top].mean(1)
        threshold = float(of_others.quantile(OF_OTHERS))
        members = (likeness >= threshold) & sample.discovery
        if int(members.sum()) < LEAST_CARRIERS:
            return None
    held = likeness >= threshold
    if sample.least_share(held) < LEAST_SHARE:
        return None
    masks = torch.zeros(len(sample), *sample.size, dtype=torch.bool)
    masks[held] = waves(sample.crops[held], top, round(_across(sample)))
    around, within = (masks[held][:, part].float().mean() for part in (behind, ~behind))
    if within > MOST_WITHIN * around:
        return None
    return Cue(
        kind="texture",
        origin="spectrum",
        likeness=likeness,
        threshold=threshold,
        masks=masks,
        places=sample.middles,
        is_fixed=False,
        absent=float(of_others.quantile(OF_ABSENT)),
    )


def peaks(
    crops: UInt8[Tensor, "images 3 height width"],
) -> Float[Tensor, "images height half"]:
    """The logarithm of each frequency's power beyond that of the frequencies around it."""
    return torch.cat([_peaks(part) for part in crops.split(PART)])


def frequencies(size: tuple[int, int]) -> Float[Tensor, "height half"]:
    """Cycles per pixel of each number of a real image's transform."""
    down, across = torch.fft.fftfreq(size[0]), torch.fft.rfftfreq(size[1])
    return (down[:, None].square() + across.square()).sqrt()


def waves(
    crops: UInt8[Tensor, "images 3 height width"], top: Int[Tensor, " peaks"], across: int
) -> Bool[Tensor, "images height width"]:
    """Where each image holds waves of some frequencies, told for quarters of a token.

    `top` are indices of frequencies(), row by row; `across` pixels a token measures.
    """
    height, width = crops.shape[-2:]
    kept = torch.zeros(height, width // 2 + 1)
    kept.view(-1)[top] = 1
    side = 2 * REACH + 1
    kept = functional.max_pool2d(_wrapped(kept[None], REACH)[:, None], side, 1, (0, REACH))[0, 0]
    part = max(1, across // OF_TOKEN)
    found = []
    for some in crops.split(PART):
        wave = torch.fft.irfft2(torch.fft.rfft2(_centred(some)) * kept, s=(height, width))
        power = wave.square().sum(1, keepdim=True)
        power = functional.avg_pool2d(power, part, ceil_mode=True, count_include_pad=False)
        for _ in range(2):
            power = functional.avg_pool2d(power, SPAN, 1, SPAN // 2, count_include_pad=False)
        strength = power[:, 0].sqrt()
        strongest = strength.flatten(1).quantile(STRONGEST, dim=1)
        found.append(strength >= OF_STRONGEST * strongest[:, None, None])
    return to_pixels(torch.cat(found), (height, width))


def _peaks(
    crops: UInt8[Tensor, "images 3 height width"],
) -> Float[Tensor, "images height half"]:
    height, width = crops.shape[-2:]
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(
        width, periodic=False
    )
    power = torch.fft.rfft2(_centred(crops) * window).abs().square().sum(1)
    level = _smooth(power, SMOOTH).clamp_min(LEAST_POWER).log()
    return level - _smooth(level, AROUND)


def _centred(
    crops: UInt8[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 3 height width"]:
    pixels = crops.float() / 255
    return pixels - pixels.mean((2, 3), keepdim=True)


def _smooth(
    values: Float[Tensor, "images height half"], size: int
) -> Float[Tensor, "images height half"]:
    """Means of so many frequencies to each side together; the highest go on with the lowest."""
    reach = size // 2
    rows = functional.avg_pool2d(_wrapped(values, reach)[:, None], (size, 1), 1)
    return functional.avg_pool2d(rows, (1, size), 1, (0, reach), count_include_pad=False)[:, 0]


def _wrapped(values: Float[Tensor, "images height half"], by: int) -> Tensor:
    return torch.cat([values[:, -by:], values, values[:, :by]], 1)


def _across(sample: ClassSample) -> float:
    """Pixels across a token."""
    return sample.size[0] / sample.grid[0]
