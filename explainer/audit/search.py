"""Search images for a template at every place, by Fourier transforms of the images made once.

A convolution with one template has one output channel, at which it is slow on a CPU: this took a
third to a twentieth of its time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor


@dataclass(frozen=True)
class Template:
    """Pixels that are alike in some images, which are averages of theirs."""

    pixels: Float[Tensor, "3 height width"]
    mask: Bool[Tensor, "height width"]


@dataclass(frozen=True)
class Searchable:
    """Images as the spectra of minus twice their channels and of the sum of their squares."""

    spectra: Complex[Tensor, "images 4 height half"]
    size: tuple[int, int]

    @classmethod
    def of(cls, images: Float[Tensor, "images 3 height width"]) -> "Searchable":
        """The images to search."""
        squares = images.square().sum(1, keepdim=True)
        spectra = torch.fft.rfft2(torch.cat([-2 * images, squares], 1))
        return cls(spectra, (images.shape[-2], images.shape[-1]))

    def distances(self, template: Template) -> Float[Tensor, "images down across"]:
        """Mean squared distances over a template's mask, at every place where its box fits."""
        rows, columns = torch.nonzero(template.mask, as_tuple=True)
        box = (slice(int(rows.min()), int(rows.max()) + 1),
               slice(int(columns.min()), int(columns.max()) + 1))  # fmt: skip
        weights = template.mask[box].float()
        pixels = template.pixels[(slice(None), *box)] * weights
        height, width = weights.shape
        kernel = torch.zeros(4, *self.size)
        kernel[:, :height, :width] = torch.cat([pixels, weights[None]])
        spectrum = (self.spectra * torch.fft.rfft2(kernel).conj()).sum(1)
        at_places = torch.fft.irfft2(spectrum, s=self.size)
        fitting = at_places[:, : self.size[0] - height + 1, : self.size[1] - width + 1]
        total = fitting + pixels.square().sum()
        return (total / (3 * weights.sum())).clamp_min(0)
