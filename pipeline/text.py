"""File names as text: POSIX allows every byte in them but `/` and NUL."""

from typing import Any
from unicodedata import category

# Controls, formats (which reorder or hide their neighbours), halves of pairs, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of Persian words and of emoji


def printable(text: str) -> str:
    r"""Return one line that a terminal only shows: what would command it is written `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        _escaped(char) if category(char) in _HIDDEN and char not in _JOINERS else char
        for char in text
    )


def valid(value: Any) -> Any:
    r"""Return a value of JSON whose texts are Unicode: a byte that is none is written `\xff`."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return "".join(_escaped(char) if category(char) == "Cs" else char for char in value)
    if isinstance(value, dict):
        return {valid(key): valid(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [valid(item) for item in value]
    return value


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # what `os.fsdecode` makes of a byte
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
