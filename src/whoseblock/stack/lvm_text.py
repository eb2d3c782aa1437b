"""The text in which LVM2 writes its metadata: nested sections, assignments, lists.

The grammar is that of lvm.conf(5) and vgcfgbackup(8): ``name { … }``, ``name = value``, where a
value is a number, a quoted text with backslashes, or a list in brackets; ``#`` starts a comment.
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
_DEEPEST: Final = 16
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class _Tokens:
    """The tokens of a text, one of which can be looked at before it is taken."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(text)
        self.next = next(self._tokens)

    @staticmethod
    def _split(text: str) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"nothing that LVM writes, at character {at}")
            at = match.end()
            if match.lastgroup:
                yield match.lastgroup, match[match.lastgroup]
        yield "end", ""

    def take(self) -> tuple[str, str]:
        """Take the next token."""
        token = self.next
        if token[0] != "end":
            self.next = next(self._tokens)
        return token

    def expect(self, mark: str) -> None:
        """Take a mark; raises ValueError if it is something else."""
        if self.take() != ("mark", mark):
            raise ValueError(f"no {mark!r} where one was expected")


def parse_text(text: str) -> Section:
    """Read a whole text; raises ValueError if it is not of this form."""
    tokens = _Tokens(text)
    section = _section(tokens, 0)
    if tokens.next[0] != "end":
        raise ValueError("a bracket too many")
    return section


def _section(tokens: _Tokens, depth: int) -> Section:
    section: Section = {}
    while tokens.next[0] == "name":
        name = tokens.take()[1]
        if tokens.next == ("mark", "{"):
            if depth >= _DEEPEST:
                raise ValueError("sections without end")
            tokens.take()
            section[name] = _section(tokens, depth + 1)
            tokens.expect("}")
        else:
            tokens.expect("=")
            section[name] = _value(tokens, depth)
    return section


def _value(tokens: _Tokens, depth: int) -> Value:
    kind, text = tokens.take()
    if kind == "text":
        return _ESCAPED.sub(r"\1", text[1:-1])
    if kind == "number":
        return float(text) if "." in text else int(text)
    if (kind, text) != ("mark", "[") or depth >= _DEEPEST:
        raise ValueError("no value where one was expected")
    values: list[Value] = []
    while tokens.next != ("mark", "]"):
        values.append(_value(tokens, depth + 1))
        if tokens.next == ("mark", ","):
            tokens.take()
        elif tokens.next != ("mark", "]"):
            raise ValueError("a list without end")
    tokens.take()
    return values
