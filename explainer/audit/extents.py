"""How many images a cue is tested on: few at first, and more where these leave it open."""

from dataclasses import dataclass

# Recipients of a carrier's cue, and other images filled at its places, at most; but as many as make
# the least p-value small.
OF_EACH, LEAST_RECIPIENTS = 3, 16
# At most so many returns are made of a carrier.
RETURNS_OF_EACH = 2


@dataclass(frozen=True)
class Extent:
    """How many images each intervention is made on, at most.

    `compared`: of the class's others; as many carriers, or 80, stand beside them. `given`: of them,
    are given content, however few carriers there are.
    """

    recipients: int
    returns: int
    removed: int
    compared: int
    given: int

    def of_few(self, carriers: int) -> "Extent":
        """The same for so many carriers, whose cues say little more in more images."""
        most = max(LEAST_RECIPIENTS, OF_EACH * carriers)
        return Extent(
            recipients=min(self.recipients, most),
            returns=min(self.returns, RETURNS_OF_EACH * carriers),
            removed=min(self.removed, carriers),
            compared=min(self.compared, most),
            given=self.given,
        )


# Cues are tested on the latter where the former leaves it open.
FIRST, SECOND = Extent(24, 32, 24, 20, 56), Extent(80, 96, 80, 168, 176)
