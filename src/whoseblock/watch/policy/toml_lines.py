"""Find the line of each key of a TOML file.

tomllib reports lines of syntax errors only. This scans a file that tomllib has accepted, and knows
just enough TOML for that: tables, arrays of tables, keys, and where values end.
"""

import re
from collections import Counter
from typing import Final

__all__ = ["Key", "find_lines"]

#: Names of tables and keys, and indexes into arrays of tables, outermost first.
Key = tuple[str | int, ...]

_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')"""
_PARTS: Final = re.compile(_PART)
_DOTTED: Final = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_ARRAY: Final = re.compile(rf"[ \t]*\[\[[ \t]*({_DOTTED})[ \t]*\]\]")
_TABLE: Final = re.compile(rf"[ \t]*\[[ \t]*({_DOTTED})[ \t]*\]")
_KEY: Final = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
#: The tokens that decide where a value ends: strings, brackets, comments.
_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|[\[\]{}\n]|#[^\n]*",
    re.DOTALL,
)


def find_lines(text: str) -> dict[Key, int]:
    """Return the line, from 1, of each table and key, such as ``("rule", 0, "exec")``.

    Keys inside an inline table are not listed.
    """
    found: dict[Key, int] = {(): 1}
    arrays: Counter[Key] = Counter()
    table: Key = ()
    at = 0
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        if match := _ARRAY.match(text, at):
            name = _resolve(_split_key(match[1]), arrays)
            table = (*name, arrays[name])
            arrays[name] += 1
            found.setdefault(name, line)
            found[table] = line
        elif match := _TABLE.match(text, at):
            table = _resolve(_split_key(match[1]), arrays)
            found.setdefault(table, line)
        elif match := _KEY.match(text, at):
            key = table
            for part in _split_key(match[1]):
                key = (*key, part)
                found.setdefault(key, line)
        at = _end_of_value(text, match.end() if match else at)
    return found


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PARTS.findall(dotted))


def _resolve(name: tuple[str, ...], arrays: Counter[Key]) -> Key:
    """Return the key of a table, with the index of the last element for arrays of tables."""
    key: Key = ()
    for number, part in enumerate(name):
        key = (*key, part)
        if number < len(name) - 1 and arrays[key]:
            key = (*key, arrays[key] - 1)
    return key


def _end_of_value(text: str, at: int) -> int:
    """Return where the line after a value begins."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        word = token[0]
        if word in ("[", "{"):
            depth += 1
        elif word in ("]", "}"):
            depth -= 1
        elif word == "\n" and depth <= 0:
            return token.end()
    return len(text)
