"""Messages and names are one printable line, whatever characters they contain."""

import json
import os

import pytest

from fscl.errors import FsclError, printable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cat", "cat"),
        ("Käfer 花 👩‍🔬 नमस्ते", "Käfer 花 👩‍🔬 नमस्ते"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("nul\0", "nul\\x00"),
        ("two\u2028lines", "two\\u2028lines"),
        ("\ud83d", "\\ud83d"),
    ],
)
def test_printable_shows_a_name_as_one_line(name: str, text: str) -> None:
    assert printable(name) == text
    assert printable(text) == text
    printable(name).encode("utf-8")
    json.dumps(printable(name), ensure_ascii=False).encode("utf-8")


def test_printable_shows_names_of_different_bytes_differently() -> None:
    names = [os.fsdecode(bytes([97, byte])) for byte in range(1, 256) if byte != 47]
    assert len({printable(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.png"), "a\nb.png", "\x1b[2J.png", "\ud800.png"])
def test_an_error_message_can_be_printed_whatever_it_quotes(name: str) -> None:
    message = str(FsclError(f"{name}: not a readable image"))
    message.encode("utf-8")
    assert message.isprintable()
    assert message.endswith(".png: not a readable image")


def test_an_error_message_of_several_lines_becomes_one_line() -> None:
    assert str(FsclError("failed:\n\tmissing keys\n\n  unexpected keys\n")) == "failed: missing keys unexpected keys"


def test_an_fscl_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"num_atoms is 0"):
        raise FsclError("num_atoms is 0")


def test_characters_that_a_terminal_cannot_show_are_escaped() -> None:
    assert printable("a\tb\u2028c\udcff") == r"a\tb\u2028c\xff"
