"""Parse the text of LVM2 metadata: nested sections, assignments, lists.

The grammar is that of lvm.conf(5) and vgcfgbackup(8): ``name { … }`` and ``name = value``. A value
is a number, a quoted string with backslash escapes, or a list in brackets. ``#`` starts a comment.
"""

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["Section", "Value", "parse_text"]

Value = int | float | str | list["Value"]
Section = dict[str, "Value | Section"]

_TOKEN: Final = re.compile(
    r"""
    \s+ | \#[^\n]* |
    (?P<text>"(?:[^"\\]|\\.)*") |
    (?P<number>[-+]?[0-9]{1,20}(?:\.[0-9]{1,20})?)(?![\w.]) |
    (?P<name>[\w.+/-]{1,256}) |
    (?P<mark>[{}=\[\],])
    """,
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_MAX_DEPTH: Final = 16
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class _Tokens:
    """The tokens of a text, with one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(text)
        self.next = next(self._tokens)

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"invalid token at character {at}")
            at = match.end()
            if match.lastgroup:
                yield match.lastgroup, match[match.lastgroup]
        yield "end", ""

    def read(self) -> tuple[str, str]:
        """Return the next token and advance."""
        token = self.next
        if token[0] != "end":
            self.next = next(self._tokens)
        return token

    def expect(self, mark: str) -> None:
        """Skip a mark; raises ValueError if the next token is another one."""
        if self.read() != ("mark", mark):
            raise ValueError(f"expected {mark!r}")


def parse_text(text: str) -> Section:
    """Parse a complete text; raises ValueError if it is invalid."""
    tokens = _Tokens(text)
    section = _parse_section(tokens, 0)
    if tokens.next[0] != "end":
        raise ValueError("unbalanced bracket")
    return section


def _parse_section(tokens: _Tokens, depth: int) -> Section:
    section: Section = {}
    while tokens.next[0] == "name":
        name = tokens.read()[1]
        if tokens.next == ("mark", "{"):
            if depth >= _MAX_DEPTH:
                raise ValueError("sections nested too deeply")
            tokens.read()
            section[name] = _parse_section(tokens, depth + 1)
            tokens.expect("}")
        else:
            tokens.expect("=")
            section[name] = _parse_value(tokens, depth)
    return section


def _parse_value(tokens: _Tokens, depth: int) -> Value:
    kind, text = tokens.read()
    if kind == "text":
        return _ESCAPED.sub(r"\1", text[1:-1])
    if kind == "number":
        return float(text) if "." in text else int(text)
    if (kind, text) != ("mark", "[") or depth >= _MAX_DEPTH:
        raise ValueError("expected a value")
    values: list[Value] = []
    while tokens.next != ("mark", "]"):
        values.append(_parse_value(tokens, depth + 1))
        if tokens.next == ("mark", ","):
            tokens.read()
        elif tokens.next != ("mark", "]"):
            raise ValueError("unterminated list")
    tokens.read()
    return values
