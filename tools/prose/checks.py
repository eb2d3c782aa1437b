"""The rules: how docstrings begin, how long sentences are, which words are banned."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import NamedTuple

from tools.prose.files import TOP, lines_of
from tools.prose.sentences import MAX_WORDS, long_sentences

#: How no docstring of a module, class or property begins: name the thing instead.
_PRONOUNS = frozenset("what how where when who whose which nothing".split())
_SHOWN = 60

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Fault(NamedTuple):
    """A sentence or a word that breaks a rule."""

    file: Path
    line: int
    what: str

    def __str__(self) -> str:
        """Return ``FILE:LINE: what``."""
        name = self.file.relative_to(TOP) if self.file.is_relative_to(TOP) else self.file
        return f"{name}:{self.line}: {self.what}"


class _Ban(NamedTuple):
    expression: re.Pattern[str]
    instead: str


@cache
def _verbs() -> frozenset[str]:
    return frozenset(word for line in lines_of("verbs.txt") for word in line.split())


@cache
def _bans() -> tuple[_Ban, ...]:
    bans = []
    for line in lines_of("banned.txt"):
        written, _, instead = line.partition("\t")
        words = written.removeprefix("case:")
        flags = re.NOFLAG if written.startswith("case:") else re.IGNORECASE
        # White space may be a line break, with the sign of a comment or the quotes of a string.
        spaced = words.replace(" ", r"""(?:\s|#:?\s|"\s*f?")+""")
        start = r"\b" if re.match(r"[\w(]", words) else ""
        end = r"\b" if re.search(r"[\w)]$", words) else ""
        bans.append(_Ban(re.compile(f"{start}(?:{spaced}){end}", flags), instead))
    return tuple(bans)


def banned_words(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each banned word, and what to write instead."""
    for ban in _bans():
        for match in ban.expression.finditer(text):
            found = " ".join(match[0].split())
            yield text.count("\n", 0, match.start()) + 1, f"banned: {found!r}; write: {ban.instead}"


def _first_word(docstring: str) -> str:
    words = docstring.split(maxsplit=1)
    return words[0].rstrip(".,;:") if words else ""


def _is_property(node: _Documented) -> bool:
    if isinstance(node, ast.Module | ast.ClassDef):
        return False
    names = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name.rpartition(".")[2] in ("property", "cached_property") for name in names)


def _first_word_fault(node: _Documented, docstring: str) -> str | None:
    word = _first_word(docstring)
    if isinstance(node, ast.Module | ast.ClassDef) or _is_property(node):
        if word.lower() in _PRONOUNS:
            return f"the docstring begins with {word!r}; begin with a noun phrase"
        return None
    if word[:1].isupper() and word.lower() in _verbs():
        return None
    return f"the docstring of {node.name} begins with {word!r}, not with an imperative verb"


def docstring_faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the faults of all docstrings of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, _Documented):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        line = node.body[0].lineno
        if fault := _first_word_fault(node, docstring):
            yield line, fault
        yield from _length_faults(cleandoc(docstring), line)


def help_faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the long sentences of the help texts of options."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.keyword)
            and node.arg == "help"
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield from _length_faults(node.value.value, node.value.lineno)


def _length_faults(text: str, first: int) -> Iterator[tuple[int, str]]:
    for sentence in long_sentences(text, first):
        shown = sentence.text[:_SHOWN]
        yield sentence.line, f"{sentence.words} words, more than {MAX_WORDS}: {shown!r}…"


def check_file(file: Path) -> list[Fault]:
    """Return the faults of a Python or Markdown file, ordered by line."""
    text = file.read_text("utf-8")
    found = list(banned_words(text))
    if file.suffix == ".py":
        found += [*docstring_faults(text), *help_faults(text)]
    else:
        found += _length_faults(text, 1)
    return [Fault(file, line, what) for line, what in sorted(found)]
