"""Names from outside, as text that a terminal, a table or a figure can show in one line."""

__all__ = ["csv_cell", "printable"]

# what spreadsheets read as the beginning of a formula, and its full-width forms
FORMULA = "=+-@\t\r＝＋－＠"


def printable(name: object) -> str:
    """A name in one line, in which what is not printable is written as Python would write it.

    >>> printable("first\\nsecond"), printable(b"na\\xefve".decode("utf-8", "surrogateescape"))
    ('first\\\\nsecond', 'na\\\\xefve')
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(name))


def csv_cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula: an apostrophe comes first where it begins like one.

    >>> csv_cell("=1+1"), csv_cell("net-1")
    ("'=1+1", 'net-1')
    """
    return f"'{name}" if name.startswith(tuple(FORMULA)) else name


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
