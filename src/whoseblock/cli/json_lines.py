"""Answers as JSON Lines, written in pieces."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from whoseblock.encode import encode_json
from whoseblock.fs.base import Answer, FileOwner, Owner
from whoseblock.fs.stream import LeadingRows

__all__ = ["json_chunks"]

#: Answers with no more rows are encoded at once.
_FEW: Final = 8
#: Rows and paths that are encoded at once.  Rows of one file share its paths in memory, but each
#: has its own in the output.
_WEIGHT: Final = 4096


def json_chunks(answers: Iterable[LeadingRows | Answer]) -> Iterator[bytes]:
    """Encode a stream of answers, one line each; see `fs.stream`.

    Fields that are known only at the end of an answer in pieces come after its ``owners``.
    """
    leading = False
    for item in answers:
        rows = item.owners
        if isinstance(item, LeadingRows):
            if not leading:
                yield b'{"start":%d,"length":%d,"owners":[' % (item.start, item.length)
            yield from _rows(rows, follow=leading)
            leading = True
        elif leading:
            yield from _rows(rows, follow=True)
            more = _fields(item)
            yield b"]," + encode_json({**more[0], **more[1]})[1:] + b"\n"
            leading = False
        elif len(rows) == 1 or (len(rows) <= _FEW and sum(map(_weight, rows)) <= _WEIGHT):
            yield encode_json(item) + b"\n"
        else:
            before, after = _fields(item)
            about = {"start": item.start, "length": item.length, **before}
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
