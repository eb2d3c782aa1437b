"""Escape untrusted text, and round sizes, for terminals and pages."""

from typing import Final

__all__ = ["printable", "rounded"]

_UNIT: Final = 1024
_UNITS: Final = "KMGTPE"
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def printable(text: str) -> str:
    r"""Escape characters that a terminal or a browser could interpret, or that are invisible.

    Control characters, invisible and direction-changing ones, and bytes that are not UTF-8 become
    ``\n``, ``\x1b``, ``\u202e``. A backslash is doubled, so that different names look different.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - the lone surrogates of os.fsdecode
        code -= 0xDC00
    if code <= 0xFF:  # noqa: PLR2004 - two digits
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - four digits


def rounded(number: int) -> str:
    """Return a number of bytes for people, in three digits or exact: 512, 16K, 1.95T."""
    unit = -1
    value: float = number
    while value >= _UNIT and unit < len(_UNITS) - 1:
        value /= _UNIT
        unit += 1
    if unit < 0:
        return str(number)
    digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004 - three digits
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{_UNITS[unit]}"
