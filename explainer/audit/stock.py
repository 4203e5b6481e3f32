"""What a trial takes its images from: a class's own, and other classes', drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from explainer.audit.content import widened
from explainer.audit.cues import Cue
from explainer.audit.interventions import Images
from explainer.audit.sample import ClassSample


@dataclass(frozen=True)
class Stock:
    """Images of a class, and groups of other classes' that cues are pasted into."""

    sample: ClassSample
    recipients: Sequence[Images]
    generator: torch.Generator

    def mine(self, images: Int[Tensor, " images"]) -> Images:
        """Some of the class's own."""
        target = self.sample.target
        return Images(self.sample.crops[images], torch.full((len(images),), target))

    def tested(self, cue: Cue) -> Bool[Tensor, " images"]:
        """A cue's carriers but for images that it was found in."""
        return cue.carriers if cue.is_crossed else cue.carriers & ~self.sample.discovery

    def masks(
        self, cue: Cue, images: Int[Tensor, " images"]
    ) -> Bool[Tensor, "images height width"]:
        """What is taken of some of them and given: a seam is the cue still."""
        return widened(cue.masks[images], self.sample.grid)

    def drawn(self, count: int) -> Images:
        """So many recipients, of all groups alike; twice where there are not as many."""
        share = -(-count // len(self.recipients))
        drawn = [group.only(repeated(self.order(len(group)), share)) for group in self.recipients]
        return Images.joined(drawn).only(torch.arange(count))

    def different(self, count: int) -> Images:
        """At most so many recipients, of all groups alike, none twice: each counts as one."""
        share = -(-count // len(self.recipients))
        drawn = [group.only(self.order(len(group))[:share]) for group in self.recipients]
        return Images.joined(drawn).only(torch.arange(min(count, sum(len(each) for each in drawn))))

    def order(self, count: int) -> Int[Tensor, " count"]:
        """A random order of so many."""
        return torch.randperm(count, generator=self.generator)


def repeated(items: Int[Tensor, " items"], count: int) -> Int[Tensor, " count"]:
    """The first `count` of some, beginning anew where there are not as many."""
    return items.repeat(-(-count // len(items)))[:count]
