"""Answers without paths as JSON Lines, written from columns; the bytes are those of `json_lines`.

A block of rows becomes a matrix of bytes, with a line in each row.  Every text and number of a line
has as many columns as the longest in the block needs, and a mask selects the bytes to write.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from whoseblock.columns import PlacedColumns
from whoseblock.encode import encode_json
from whoseblock.fs.arrays import FORKS, KINDS, WHATS, OwnerArrays
from whoseblock.fs.base import Answer
from whoseblock.fs.pieces import Piece, row_of
from whoseblock.fs.stream import AnswerColumns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Ints = NDArray[np.int64]
    #: A part of each line: bytes, and which of them are written.
    Part = tuple[NDArray[np.uint8], Bools]

__all__ = ["column_chunks"]

#: The rows of a block: enough to call NumPy rarely, few enough for the caches.
_ROWS: Final = 4096
#: Numbers that stand for start, length, inode and file offset in a template.
_PLACES: Final = tuple(10**17 + number for number in range(4))
#: The numbers of values of the columns that the texts of a row depend on.
_WORDS: Final = (len(KINDS), len(WHATS), len(FORKS), 2, 2)
#: Digits are looked up four at a time.
_GROUP: Final = 10_000
#: The powers of ten that 64 bits hold: a number from the first on has two digits at least.
_POWERS: Final = 10 ** np.arange(1, 19)


def column_chunks(
    placed: PlacedColumns | AnswerColumns, encode_answer: Callable[[Answer], Iterable[bytes]]
) -> Iterator[bytes]:
    """Encode answers without paths, one line each; ``encode_answer`` encodes the odd ones."""
    if isinstance(placed, AnswerColumns):
        placed = PlacedColumns(placed)
    columns, way = placed.columns, placed.way
    rows = columns.rows
    frame = _frame(columns.common)
    report = _text_of(f"{placed.report}, line ")
    names = [_text_of(name) for name, _ in way]
    if frame is None or report is None or None in names:
        for number in range(len(columns.questions)):
            yield from encode_answer(columns.answer(number))
        return
    starts = np.array(columns.questions.starts, np.int64)
    lengths = np.array(columns.questions.lengths, np.int64)
    changes = rows.question[1:] != rows.question[:-1]
    is_first, is_last = np.append(True, changes), np.append(changes, True)
    line_numbers = np.array(placed.lines, np.int64)
    steps = [(name, distance) for name, (_, distance) in zip(names, way, strict=True) if name]
    is_plain = ~columns.is_odd[rows.question]
    for at in range(0, rows.question.size, _ROWS):
        block = slice(at, at + _ROWS)
        question, plain, first = rows.question[block], is_plain[block], is_first[block]
        opens, closes = plain & first, plain & is_last[block]
        parts = [
            _text(frame[0], opens),
            _number(starts[question], opens),
            _text(frame[1], opens),
            _number(lengths[question], opens),
            _text(frame[2], opens),
            _text(b",", plain & ~first),
            *_row_parts(rows, block, plain),
            *_way_parts(rows.start[block], steps, plain),
            _text(b"}", plain),
            _text(b"]", closes),
        ]
        if placed.report:
            parts += [
                _text(b',"origin":' + report[:-1], closes),
                _number(line_numbers[question], closes),
                _text(b'"', closes),
            ]
        parts += [
            _text(frame[3], closes),
            *_way_parts(starts[question], steps, closes),
            _text(b"}\n", closes),
        ]
        values, written = map(np.hstack, zip(*parts, strict=True))
        lines = values[written].tobytes()
        done = 0
        if not plain.all():
            ends = np.cumsum(written.sum(axis=1))
            for row in np.flatnonzero(first & ~plain).tolist():
                yield lines[done : ends[row]]
                yield from encode_answer(columns.answer(int(question[row])))
                done = ends[row]
        yield lines[done:]


def _frame(common: Answer) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Return what all lines have before and after the start, the length and the rows.

    None if their notes cannot be encoded in UTF-8: such lines are written in another way.
    """
    start, length, *_ = _PLACES
    text = encode_json(replace(common, start=start, length=length))
    before, _, rest = text.partition(b"%d" % start)
    between, _, rest = rest.partition(b"%d" % length)
    notes, owners, after = rest.partition(b'"owners":[')
    ends = after.startswith(b"]") and after.endswith(b"}")
    return (before, between, notes + owners, after[1:-1]) if owners and ends else None


def _text_of(text: str) -> bytes | None:
    """Encode a string; None if it is not UTF-8: its whole line is written in another way."""
    return encode_json(text) if text.isascii() or _is_utf8(text) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _way_parts(
    places: "Ints", steps: Sequence[tuple[bytes, int]], shown: "Bools"
) -> "Iterator[Part]":
    """Yield the parts of ``via`` of what is at places of the layer that was queried."""
    text = b',"via":['
    for name, distance in steps:
        yield _text(text + b'{"layer":' + name + b',"start":', shown)
        yield _number(places + distance, shown)
        text = b"},"
    if steps:
        yield _text(b"}]", shown)


def _row_parts(rows: OwnerArrays, block: slice, shown: "Bools") -> "Iterator[Part]":
    """Yield the parts of the rows of a block."""
    words = (rows.kind, rows.what, rows.fork, rows.unwritten, rows.shared)
    key = np.ravel_multi_index([column[block] for column in words], _WORDS)
    keys = np.flatnonzero(np.bincount(key))
    templates = [_template(one) for one in keys.tolist()]
    which = np.searchsorted(keys, key)
    numbers = (rows.start, rows.length, rows.inode, rows.file_offset)
    for place, number in enumerate(numbers):
        texts = [template[place] if place < len(template) else b"" for template in templates]
        yield _choice(texts, which, shown)
        follows = np.array([place + 1 < len(template) for template in templates])
        yield _number(number[block].astype(np.int64), follows[which] & shown)
    last = len(numbers)
    yield _choice([t[last] if last < len(t) else b"" for t in templates], which, shown)


@cache
def _template(key: int) -> list[bytes]:
    """Return the texts before, between and after the numbers of a row.

    A row without a file offset has one number less, and one without an inode two.
    """
    kind, what, fork, unwritten, shared = map(int, np.unravel_index(key, _WORDS))
    start, length, inode, file_offset = _PLACES
    piece = Piece(
        start, length, kind, what, fork, inode, file_offset, bool(unwritten), bool(shared)
    )
    rest = encode_json(row_of(piece, None))
    texts = []
    for place in _PLACES:
        before, found, after = rest.partition(b"%d" % place)
        if not found:
            break
        texts.append(before)
        rest = after
    # Further fields may follow.
    return [*texts, rest.removesuffix(b"}")]


def _text(text: bytes, shown: "Bools") -> "Part":
    """Return a part that is the same in all lines where it is shown."""
    shape = (shown.size, len(text))
    values = np.broadcast_to(np.frombuffer(text, np.uint8), shape)
    return values, np.broadcast_to(shown[:, None], shape)


def _choice(texts: Sequence[bytes], which: "Ints", shown: "Bools") -> "Part":
    """Return a part that is one of several texts."""
    if len(texts) == 1:
        return _text(texts[0], shown)
    sizes = np.array(list(map(len, texts)))
    width = int(sizes.max())
    padded = b"".join(text.ljust(width) for text in texts)
    values = np.frombuffer(padded, np.uint8).reshape(len(texts), width)
    written = np.arange(width) < sizes[:, None]
    return values.take(which, axis=0), written.take(which, axis=0) & shown[:, None]


def _number(numbers: "Ints", shown: "Bools") -> "Part":
    """Return a part that is a decimal number; those that are not shown may be negative."""
    rest = np.where(shown, numbers, 0)
    groups: list[NDArray[np.uint32]] = []
    largest = int(rest.max())
    while largest > 0 or not groups:
        largest //= _GROUP
        more = rest // _GROUP
        groups.append(_digits()[rest - more * _GROUP])
        rest = more
    values = np.stack(groups[::-1], axis=1).view(np.uint8)
    width = values.shape[1]
    digits = np.searchsorted(_POWERS, np.where(shown, numbers, 0), "right") + 1
    return values, (np.arange(width) >= width - digits[:, None]) & shown[:, None]


@cache
def _digits() -> "NDArray[np.uint32]":
    """Return the four digits of every number below `_GROUP`, as one integer each."""
    return np.frombuffer(b"".join(b"%04d" % number for number in range(_GROUP)), np.uint32)
