"""JSON lines that would end the process in Arrow's parser, told before it sees them."""

import numpy as np

# Arrow calls itself for each level, and is out of stack somewhere above 5,000.
MAX_LEVELS = 200
_AT_ONCE = 2**22
_QUOTE, _NULL = ord('"'), 1
_REST = bytes(code for code in range(256) if chr(code) not in '"[]{}\1')
_STEPS = np.zeros(256, np.int32)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


def refuse_fatal(data: bytes) -> None:
    """Raise ValueError for lists and objects inside each other beyond MAX_LEVELS, and for a null
    where a line's object is due (a block that begins with one is a null pointer to Arrow).

    What texts hold does not count. What is no JSON is looked at up to where it is not.
    """
    if b"\\" in data:  # an escaped quote ends no text
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    if b"null" in data:
        data = data.replace(b"null", bytes([_NULL]))
    data = data.translate(None, _REST).replace(b'""', b"")  # texts, most of which hold no bracket
    codes = np.frombuffer(data, np.uint8)
    level, quotes = 0, 0
    for start in range(0, len(codes), _AT_ONCE):
        part = codes[start : start + _AT_ONCE]
        before = np.cumsum(part == _QUOTE) + quotes
        is_outside = before % 2 == 0
        levels = np.cumsum(np.where(is_outside, _STEPS[part], 0)) + level
        if levels.max() > MAX_LEVELS:
            raise ValueError(f"JSON of more than {MAX_LEVELS} levels of lists and objects")
        if np.any(is_outside & (part == _NULL) & (levels <= 0)):
            raise ValueError("JSON lines are one object a line, and one is null")
        level, quotes = int(levels[-1]), int(before[-1])
