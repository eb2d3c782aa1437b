"""Read the text files that options name: by lines, by chunks, as whole documents."""

import io
import os
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from whoseblock.errors import MalformedError, WhoseblockError
from whoseblock.sources.base import MAX_LINE, Reading

__all__ = [
    "name_of",
    "read_chunks",
    "read_document",
    "read_lines",
    "read_log_lines",
    "read_tail",
    "start_reading",
]

#: So many characters of a list of ranges are parsed at once, up to the end of the line.
_CHUNK: Final = 1 << 15
#: The characters at the end of a map in which its last block is.
_TAIL: Final = 1 << 12
#: Limit on the length of a document, in characters.
_MAX_DOCUMENT: Final = 1 << 26


def read_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raises `MalformedError` for one that is too long."""
    number = 0
    while line := _read(file.readline, file, MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            expected = f"text in lines of less than {MAX_LINE} characters"
            raise MalformedError(name_of(file), number, expected)
        yield line


def read_log_lines(file: TextIO, reading: Reading) -> Iterator[str]:
    """Yield the lines of a log; count one that is too long, and yield an empty line instead."""
    number = 0
    while line := _read(file.readline, file, MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and line[-1] != "\n":
            expected = f"less than {MAX_LINE} characters"
            reading.count_broken(f"line {number}", line, expected)
            while (line := _read(file.readline, file, MAX_LINE)) and line[-1] != "\n":
                pass
            line = "\n"
        yield line


def read_chunks(file: TextIO) -> Iterator[str]:
    """Yield the text of a file, many whole lines at once; raises what `read_lines` does."""
    number = 0
    while text := _read(file.read, file, _CHUNK):
        if not text.endswith("\n"):
            text += _read(file.readline, file, MAX_LINE)
        number += text.count("\n")
        last = text.rfind("\n", 0, -1) + 1
        if len(text) - last >= MAX_LINE:
            expected = f"text in lines of less than {MAX_LINE} characters"
            raise MalformedError(name_of(file), number + (text[-1] != "\n"), expected)
        yield text


class _PipeCopy(io.TextIOWrapper):
    """A copy of a pipe in a temporary file, with the name of the pipe in messages."""

    def __init__(self, name: str) -> None:
        import tempfile

        super().__init__(
            tempfile.TemporaryFile(),  # noqa: SIM115 - closed with this object
            encoding="utf-8",
            errors="surrogateescape",
        )
        self._name = name

    @property
    def name(self) -> str:
        """The name of the pipe."""
        return self._name


def read_tail(file: TextIO) -> tuple[TextIO, str]:
    """Return the last characters of a file, and the file at its former position; a copy of a pipe.

    Raises `MalformedError` for a pipe that is too long.
    """
    if not file.seekable():
        copy = _PipeCopy(name_of(file))
        length = 0
        while text := _read(file.read, file, _CHUNK):
            length += copy.write(text)
            if length > _MAX_DOCUMENT:
                expected = f"a map of less than {_MAX_DOCUMENT} characters in a pipe"
                raise MalformedError(copy.name, None, expected)
        copy.seek(0)
        file = copy
    position = file.tell()
    end = file.seek(0, os.SEEK_END)
    # Positions of a file in UTF-8 are bytes.
    file.seek(max(end - _TAIL, position))
    try:
        tail = _read(file.read, file, 2 * _TAIL)
    finally:
        file.seek(position)
    return file, tail


def read_document(file: TextIO) -> str:
    """Read a whole file; raises `MalformedError` for one that is too long."""
    text = _read(file.read, file, _MAX_DOCUMENT)
    if len(text) == _MAX_DOCUMENT:
        expected = f"a document of less than {_MAX_DOCUMENT} characters"
        raise MalformedError(name_of(file), None, expected)
    return text


def _read(read: Callable[[int], str], file: TextIO, most: int) -> str:
    try:
        return read(most)
    except OSError as error:
        raise WhoseblockError(f"cannot read {name_of(file)}: {error.strerror}") from error


def name_of(file: TextIO) -> str:
    """Return the name of a file in messages."""
    name = getattr(file, "name", "-")
    return "standard input" if name in ("-", "<stdin>") else str(name)


def start_reading(file: TextIO, readings: list[Reading]) -> Reading:
    """Append a record for a file to ``readings`` and return it."""
    reading = Reading(name_of(file))
    readings.append(reading)
    return reading
