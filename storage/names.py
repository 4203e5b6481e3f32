"""File names for whatever images and classes are called."""

import hashlib
from urllib.parse import quote

# File systems end at 255 bytes, and an extension is to follow.
LONGEST = 200


def file_name(text: str, longest: int = LONGEST) -> str:
    """A name without folders for a file, of at most `longest` characters, from 40 on; another text
    gives another name.

    Letters, digits and -_.~ ,()+ stay as they are, all else is percent-encoded as in urls; what is
    too long ends in a digest of the whole.
    """
    safe = quote(text, safe=" ,()+")
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if len(safe) <= longest:
        return safe
    return f"{safe[: longest - 20]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
