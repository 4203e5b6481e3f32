"""Text in pictures: one font, and names from anywhere as what it can draw."""

from functools import cache
from pathlib import Path

from PIL import ImageFont


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, `size` pixels high."""
    return ImageFont.truetype(_path(), size)


def legible(text: str) -> str:
    """The text on one line; characters that the font lacks, or that steer, as Python escapes."""
    drawn = _characters()
    return "".join(c if c.isprintable() and ord(c) in drawn else ascii(c)[1:-1] for c in text)


def fitted(text: str, size: int, width: int) -> str:
    """The text as `legible`, cut with … where it is wider than `width` pixels."""
    text, letters = legible(text), font(size)
    if letters.getlength(text) <= width:
        return text
    fits, wider = 0, len(text)
    while fits + 1 < wider:
        middle = (fits + wider) // 2
        if letters.getlength(text[:middle] + "…") <= width:
            fits = middle
        else:
            wider = middle
    return text[:fits] + "…"


def _path() -> str:
    import matplotlib  # takes half a second

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_path()).get_charmap())
