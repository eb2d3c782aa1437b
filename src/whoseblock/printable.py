"""Escape untrusted text, for terminals and pages."""

__all__ = ["printable"]

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


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
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004
