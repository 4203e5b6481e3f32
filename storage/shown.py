"""How urls and names are shown: without secrets, and without what a terminal would obey."""

import re

# C0 and C1 controls (ESC, BEL, line ends), marks of direction, separators of lines, and halves of
# characters, as which names that are no UTF-8 reach us and which no terminal can print.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""The text on one line: a control character is written as Python would, such as \x1b."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def shown(url: str) -> str:
    """A url as messages may have it: no query (signed urls), no user and password, printable.

    A path of this machine keeps its ?.
    """
    protocol, separator, rest = url.partition("://")
    if not separator:
        return printable(url)
    host, slash, path = rest.partition("?")[0].partition("/")
    return printable(f"{protocol}://{host.rpartition('@')[2]}{slash}{path}")
