"""Answers as a table for people."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from whoseblock.fs.base import (
    Answer,
    FileOwner,
    LayerLocation,
    MetadataOwner,
    Outside,
    Owner,
    Process,
)
from whoseblock.fs.stream import LeadingRows
from whoseblock.printable import printable

__all__ = ["table_lines"]

_HEADINGS = ("START", "LENGTH", "OWNER", "INODE", "WHAT", "FILE OFFSET", "FLAGS", "PATH")
#: Columns are as wide as these many answers need; later ones push them wider.
_SAMPLE = 256
#: So are those of an answer with more than these many rows.
_ROWS = 2048

_Row = tuple[str, ...]


def table_lines(answers: Iterable[LeadingRows | Answer]) -> Iterator[str]:
    """Return the lines of the table as the answers come, whole or in pieces; see `fs.stream`.

    A file with many paths takes a line for each.  Below the rows of an answer stand the ways that
    they took through the stack, the processes that use the files, and notes, each with the first
    answer that has it.  Processes stand below the piece that has them.
    """
    said: set[str] = set()
    widths = [len(heading) for heading in _HEADINGS]
    ways: _Ways = {}
    headings = True
    for batch in _batches(answers):
        blocks = []
        for piece in batch:
            _add_ways(piece.owners, ways)
            below = list(_users(piece.owners))
            if piece.ended is not None:
                below = [*_way_lines(ways), *below, *_ending(piece.ended, said)]
                ways = {}
            blocks.append((list(_rows(piece.owners, complete=piece.complete)), below))
        for rows, _ in blocks:
            for row in rows:
                widths = [max(width, len(cell)) for width, cell in zip(widths, row, strict=True)]
        if headings:
            yield _line(_HEADINGS, widths)
            headings = False
        for rows, below in blocks:
            for row in rows:
                yield _line(row, widths)
            yield from below


class _Piece(NamedTuple):
    """Rows of an answer; ``complete`` is true before that is known; ``ended`` if no more follow."""

    owners: Sequence[Owner]
    complete: bool
    ended: Answer | None


_Ways = dict[tuple[str, ...], tuple[LayerLocation, ...]]


def _pieces(answers: Iterable[LeadingRows | Answer]) -> Iterator[_Piece]:
    for item in answers:
        complete = item.complete if isinstance(item, Answer) else True
        ended = item if isinstance(item, Answer) else None
        owners = item.owners
        while len(owners) > _ROWS:
            yield _Piece(owners[:_ROWS], complete, None)
            owners = owners[_ROWS:]
        yield _Piece(owners, complete, ended)


def _batches(answers: Iterable[LeadingRows | Answer]) -> Iterator[list[_Piece]]:
    """Group the pieces whose rows are lined up."""
    batch: list[_Piece] = []
    rows = 0
    for piece in _pieces(answers):
        batch.append(piece)
        rows += len(piece.owners)
        if len(batch) >= _SAMPLE or rows >= _ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _add_ways(rows: Iterable[Owner], ways: _Ways) -> None:
    """Add the ways down from the range, one for each that its rows have."""
    for owner in rows:
        if isinstance(owner.via, tuple):
            ways.setdefault(tuple(step.layer for step in owner.via), owner.via)


def _way_lines(ways: _Ways) -> Iterator[str]:
    for way in ways.values():
        yield "  " + " → ".join(f"{printable(step.layer)} {step.start}" for step in way)


def _ending(answer: Answer, said: set[str]) -> Iterator[str]:
    """Return a line if the owners were verified, and one for each note that is new."""
    if answer.verified is True:
        yield "  verified: the owners are still the same"
    yield from _new_notes(answer, said)


def _users(rows: Iterable[Owner]) -> Iterator[str]:
    """Return a line for each process and file."""
    for owner in rows:
        if isinstance(owner, FileOwner) and isinstance(owner.processes, tuple):
            for process in owner.processes:
                yield f"  used: {_process(process)}, inode {_inode_of(owner)}: {_uses(process)}"


def _process(process: Process) -> str:
    unit = f" of {printable(process.unit)}" if isinstance(process.unit, str) else ""
    return f"process {process.pid} {printable(process.command)}{unit}"


def _uses(process: Process) -> str:
    uses = []
    for mapping in process.mappings:
        rights = "".join(
            letter if may else "-"
            for letter, may in (
                ("r", mapping.readable),
                ("w", mapping.writable),
                ("x", mapping.executable),
            )
        )
        kind = "shared" if mapping.shared else "private"
        uses.append(f"mapped at {mapping.address:#x}+{mapping.length} {rights} {kind}")
    uses += [f"open as {file.fd} {'|'.join(file.flags)}" for file in process.open]
    return ", ".join(uses)


def _new_notes(answer: Answer, said: set[str]) -> list[str]:
    remarks = answer.notes if answer.complete else answer.remarks or ()
    lines = [
        f"  {'note' if note in remarks else 'incomplete'}: {printable(note)}"
        for note in answer.notes
    ]
    # A remark of one answer may be the reason why another is incomplete.
    new = [line for line in lines if line not in said]
    said.update(new)
    return new


def _rows(owners: Iterable[Owner], *, complete: bool) -> Iterator[_Row]:
    for owner in owners:
        facts, paths = _facts(owner, complete=complete)
        first, *more = paths or ("",)
        yield (str(owner.start), str(owner.length), owner.kind, *facts, first)
        for path in more:
            yield ("",) * (len(_HEADINGS) - 1) + (path,)


def _facts(owner: Owner, *, complete: bool) -> tuple[tuple[str, str, str, str], list[str]]:
    """Return inode, what, file offset and flags; and the paths, or what replaces them."""
    flags = {
        "shared": isinstance(owner, FileOwner) and owner.shared,
        "unwritten": isinstance(owner, FileOwner) and owner.unwritten,
        "unlinked": isinstance(owner, FileOwner) and owner.unlinked is True,
        "incomplete": not complete,
    }
    if isinstance(owner, FileOwner) and isinstance(owner.encoding, str):
        flags[owner.encoding] = True
    marks = ",".join(name for name, true in flags.items() if true)
    if isinstance(owner, FileOwner):
        offset = "" if owner.file_offset is None else str(owner.file_offset)
        paths = [f"({owner.detail})"] if isinstance(owner.detail, str) else []
        paths += map(printable, owner.paths) if isinstance(owner.paths, tuple) else ()
        return (_inode_of(owner), owner.what, offset, marks), paths
    if isinstance(owner, MetadataOwner):
        detail = [owner.detail] if isinstance(owner.detail, str) else []
        if isinstance(owner.inodes, tuple):
            detail.append(f"inodes {owner.inodes[0]} to {owner.inodes[1]}")
        return ("", owner.what, "", marks), [f"({text})" for text in detail]
    return ("", "", "", marks), [f"({owner.what})"] if isinstance(owner, Outside) else []


def _inode_of(owner: FileOwner) -> str:
    """Return the inode number, after the id of the subvolume where there are subvolumes."""
    if isinstance(owner.subvolume, int):
        return f"{owner.subvolume}/{owner.inode}"
    return str(owner.inode)


def _line(row: _Row, widths: list[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
    return "  ".join([*cells, row[-1]]).rstrip()
