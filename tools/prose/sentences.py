"""Sentences of Markdown and of docstrings, with the lines on which they begin."""

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_WORDS = 35

#: A paragraph ends before these: headings, items, quotes, rows of tables.
_STARTS = re.compile(r"\s*(?:#+ |[-*+] |\d+[.)] |> |\|)")
_ITEM = re.compile(r"^\s*(?:#+ |[-*+] |\d+[.)] |> )")
_FENCE = re.compile(r"\s*(```|~~~)")
_END = re.compile(r"(?<=[.?!])[)\"'*_`]*\s+(?=[(\"'*_`]*(?:[A-Z0-9À-Þ`/-]|whoseblock))")
_CODE = re.compile(r"``[^`]+``|`[^`]+`")
_LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_WORD = re.compile(r"\w")


class Sentence(NamedTuple):
    """A sentence and the line that it begins on."""

    line: int
    text: str

    @property
    def words(self) -> int:
        """The number of words; inline code counts as one."""
        plain = _LINK.sub(r"\1", _CODE.sub("code", self.text))
        return sum(1 for word in plain.split() if _WORD.search(word))


def _split(paragraph: list[tuple[int, str]]) -> Iterator[Sentence]:
    text = ""
    starts: list[tuple[int, int]] = []
    for line, part in paragraph:
        starts.append((len(text), line))
        text += part.strip() + " "
    # Inline code must not end a sentence: hide its dots, but keep its length.
    hidden = _CODE.sub(lambda code: "`" + "x" * (len(code[0]) - 2) + "`", text)
    begin = 0
    for end in [*(match.end() for match in _END.finditer(hidden)), len(text)]:
        if sentence := text[begin:end].strip():
            line = max(line for start, line in starts if start <= begin)
            yield Sentence(line, sentence)
        begin = end


def _without_code(text: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines; those of fenced blocks and of comments are empty."""
    fenced = ""
    for number, line in enumerate(text.splitlines(), first):
        fence = _FENCE.match(line)
        hidden = fenced or fence or line.lstrip().startswith("<!--")
        if fence and not fenced:
            fenced = fence[1]
        elif fence and fence[1] == fenced:
            fenced = ""
        yield number, "" if hidden else line


def _paragraphs(text: str, first: int) -> Iterator[list[tuple[int, str]]]:
    """Yield paragraphs, headings, items and cells as numbered lines, without blocks of code."""
    paragraph: list[tuple[int, str]] = []
    for number, line in _without_code(text, first):
        start = _STARTS.match(line)
        if start or not line.strip():
            yield paragraph
            paragraph = []
        if start and start[0].endswith("|"):
            for cell in line.strip().strip("|").split("|"):
                yield [(number, cell)]
        elif line.strip() and (start or paragraph or not line.startswith("    ")):
            # An indented line that follows an empty one is code.
            paragraph.append((number, _ITEM.sub("", line)))
    yield paragraph


def sentences(text: str, first: int = 1) -> Iterator[Sentence]:
    """Yield the sentences of *text*, whose first line has the number *first*."""
    for paragraph in _paragraphs(text, first):
        if paragraph:
            yield from _split(paragraph)


def long_sentences(text: str, first: int = 1) -> Iterator[Sentence]:
    """Yield the sentences with more than `MAX_WORDS` words."""
    return (sentence for sentence in sentences(text, first) if sentence.words > MAX_WORDS)
