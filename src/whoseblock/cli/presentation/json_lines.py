"""Answers as JSON Lines, written in pieces."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from whoseblock.encode import encode_json, encode_lines
from whoseblock.fs.base import Answer, FileOwner, Owner
from whoseblock.fs.stream import AnswerColumns, LeadingRows

if TYPE_CHECKING:
    from whoseblock.columns import PlacedColumns

__all__ = ["json_chunks"]

#: Answers with no more rows are encoded at once.
_FEW: Final = 8
#: Rows and paths that are encoded at once.  Rows of one file share its paths in memory, but each
#: has its own in the output.
_WEIGHT: Final = 4096


def json_chunks(
    answers: "Iterable[LeadingRows | Answer | AnswerColumns | PlacedColumns]",
) -> Iterator[bytes]:
    """Encode a stream of answers, one line each; see `fs.stream`.

    Fields that are known only at the end of an answer in pieces come after its ``owners``.
    """
    leading = False
    # Short answers are encoded together.
    short: list[Answer] = []
    weight = 0
    for item in answers:
        if not isinstance(item, LeadingRows | Answer):
            from whoseblock.cli.presentation.json_columns import column_chunks

            if short:
                yield encode_lines(short)
                short, weight = [], 0
            yield from column_chunks(item, _answer)
            continue
        rows = item.owners
        if len(rows) == 1 and not leading and isinstance(item, Answer):
            short.append(item)
            (row,) = rows
            weight += len(row.paths) + 1 if isinstance(row, FileOwner) and row.paths else 1
            if weight >= _WEIGHT:
                yield encode_lines(short)
                short, weight = [], 0
            continue
        if short:
            yield encode_lines(short)
            short, weight = [], 0
        if isinstance(item, LeadingRows):
            if not leading:
                yield b'{"start":%d,"length":%d,"owners":[' % (item.start, item.length)
            yield from _rows(rows, follow=leading)
        else:
            yield from _end_answer(item) if leading else _answer(item)
        leading = isinstance(item, LeadingRows)
    if short:
        yield encode_lines(short)


def _end_answer(answer: Answer) -> Iterator[bytes]:
    """Encode the last rows of an answer and its other fields."""
    yield from _rows(answer.owners, follow=True)
    before, after = _fields(answer)
    yield b"]," + encode_json({**before, **after})[1:] + b"\n"


def _answer(answer: Answer) -> Iterator[bytes]:
    """Encode a whole answer."""
    rows = answer.owners
    if len(rows) <= _FEW and sum(map(_weight, rows)) <= _WEIGHT:
        yield encode_json(answer) + b"\n"
    else:
        before, after = _fields(answer)
        about = {"start": answer.start, "length": answer.length, **before}
        yield encode_json(about)[:-1] + b',"owners":['
        yield from _rows(rows, follow=False)
        yield (b"]," + encode_json(after)[1:] if after else b"]}") + b"\n"


def _weight(row: Owner) -> int:
    return 1 + (len(row.paths) if isinstance(row, FileOwner) and row.paths else 0)


def _rows(rows: Sequence[Owner], *, follow: bool) -> Iterator[bytes]:
    """Encode rows as members of an array; ``follow`` if they are not its first."""
    first = weight = 0
    for number, row in enumerate(rows, 1):
        weight += _weight(row)
        if weight >= _WEIGHT or number == len(rows):
            encoded = encode_json(rows[first:number])[1:-1]
            yield b"," + encoded if follow or first else encoded
            first, weight = number, 0


def _fields(answer: Answer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of an answer before and after its rows, without its range."""
    fields = msgspec.to_builtins(replace(answer, owners=()))
    names = list(fields)
    at = names.index("owners")
    return {name: fields[name] for name in names[2:at]}, {
        name: fields[name] for name in names[at + 1 :]
    }
