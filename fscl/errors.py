"""The base class of all errors that fscl raises on purpose, and names as text that can be printed anywhere."""

import re
import unicodedata

__all__ = ["FsclError", "printable"]


class FsclError(ValueError):
    """An error that the user can correct. The message has the wrong value, and the values that would do.

    The message is one line of printable text, also if it quotes odd names or the errors of libraries.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", str(message).strip())))


def printable(name: str) -> str:
    r"""A name as text that can be printed and written anywhere.

    Control characters, and bytes that are not UTF-8, are escaped. Names of files and folders may contain both, and most
    functions that write text fail on bytes that are not UTF-8.

    >>> printable("caf\udce9"), printable("a\nb"), printable("Käfer")
    ('caf\\xe9', 'a\\nb', 'Käfer')
    """
    escaped = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, line and paragraph separators
    return "".join(
        c.encode("unicode_escape").decode().replace(r"\udc", r"\x") if unicodedata.category(c) in escaped else c
        for c in name
    )
