"""The base class of all errors that fscl raises on purpose."""

import re

from fscl.text import printable

__all__ = ["FsclError"]


class FsclError(ValueError):
    """An error that the user can correct. The message has the wrong value, and the values that would do.

    The message is one line of printable text, also if it quotes odd names or the errors of libraries.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", str(message).strip())))
