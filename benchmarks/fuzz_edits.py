"""Edits of a file's bytes that hypothesis draws, and shrinks to the few that matter."""

import struct
from typing import TypeVar

from hypothesis import strategies as st

# Where sizes, counts and offsets turn around.
NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 9, 127, 128, 255, 256, 1000, 8192, 16383, 32767, 32768, 65535, 65536),
    *(2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1),
)
T = TypeVar("T")
Change = tuple[str, int, bytes]


def edits(most: int = 6) -> st.SearchStrategy[list[Change]]:
    """Up to `most` edits: what is done, where, and with which bytes."""
    places = st.one_of(st.integers(0, 63), st.integers(0, 600), st.integers(0, 2**16))
    numbers = st.builds(
        lambda number, form: struct.pack(form, number & (256 ** struct.calcsize(form) - 1)),
        st.sampled_from(NUMBERS),
        st.sampled_from(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"]),
    )
    content = st.one_of(numbers, st.binary(min_size=1, max_size=8))
    kinds = st.sampled_from(["set", "set", "set", "insert", "drop", "repeat", "cut", "flip"])
    return st.lists(st.tuples(kinds, places, content), min_size=1, max_size=most)


def often(*choices: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """One of the strategies, each as often as it is named; one_of takes a repeated one once."""
    return st.integers(0, len(choices) - 1).flatmap(lambda number: choices[number])


def edited(data: bytes, changes: list[Change]) -> bytes:
    """The bytes after the edits, one after the other; a place beyond the end counts anew."""
    for kind, place, content in changes:
        at = place % max(len(data), 1)
        span = content[0] + 1  # for what needs a length
        if kind == "set":
            data = data[:at] + content + data[at + len(content) :]
        elif kind == "insert":
            data = data[:at] + content + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + span :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + span] * 3 + data[at + span :]
        elif kind == "cut":
            data = data[:at]
        elif data:
            data = data[:at] + bytes([data[at] ^ 1 << (content[0] % 8)]) + data[at + 1 :]
    return data
