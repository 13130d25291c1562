"""The one base class of every error that fscl raises on purpose, and how text of strangers is shown."""

import re
import unicodedata

__all__ = ["FsclError", "printable"]


class FsclError(ValueError):
    """A mistake that the user can mend; the message carries the offending value and the values that would do.

    The message is one line of printable text, whatever the names and the errors of libraries that it quotes.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", str(message).strip())))


def printable(name: str) -> str:
    r"""A name as text that can be printed and written anywhere; bytes that are no UTF-8 and control characters escaped.

    Names of files and folders may hold both, and most of what writes text fails on the former.

    >>> printable("caf\udce9"), printable("a\nb"), printable("Käfer")
    ('caf\\xe9', 'a\\nb', 'Käfer')
    """
    escaped = ("Cc", "Cs", "Zl", "Zp")  # control, bytes that are no UTF-8, line and paragraph separators
    return "".join(
        c.encode("unicode_escape").decode().replace(r"\udc", r"\x") if unicodedata.category(c) in escaped else c
        for c in name
    )
