"""The one way to the terminal: what a name, a label or a server says is text there, no command."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from storage.shown import printable


class Terminal(Console):
    """rich's Console, which writes control characters of what it is given as \\x1b and the like.

    rich's own, of styles and of the live bar, are left.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is printed passes here in pieces, whatever it is part of."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def plain(text: str) -> str:
    """The text in its lines, without control characters."""
    return "\n".join(map(printable, text.split("\n")))
