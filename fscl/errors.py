"""The one base class of every error that fscl raises on purpose."""

import re

from fscl.text import printable

__all__ = ["FsclError"]


class FsclError(ValueError):
    """A mistake that the user can mend; the message carries the offending value and the values that would do.

    The message is one line of printable text, whatever the names and the errors of libraries that it quotes.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", str(message).strip())))
