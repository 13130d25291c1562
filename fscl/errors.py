"""The one base class of every error that fscl raises on purpose."""

__all__ = ["FsclError"]


class FsclError(Exception):
    """A mistake that the user can mend; the message carries the offending value and the values that would do."""
