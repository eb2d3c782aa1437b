"""Answers as a table for people."""

from collections.abc import Iterable, Iterator
from itertools import islice

from whoseblock.cli.terminal import printable
from whoseblock.fs.base import Answer, FileOwner, MetadataOwner, Outside, Owner, Process, Via

__all__ = ["table_lines"]

_HEADINGS = ("START", "LENGTH", "OWNER", "INODE", "WHAT", "FILE OFFSET", "FLAGS", "PATH")
#: Columns are as wide as these many answers need; later ones push them wider.
_SAMPLE = 256

_Row = tuple[str, ...]


def table_lines(answers: Iterable[Answer]) -> Iterator[str]:
    """Give the lines of the table as the answers come.

    A file with many paths takes a line for each.  Below the rows of an answer stand the ways that
    they took through the stack, the processes that use the files, and notes, each with the first
    answer that has it.
    """
    said: set[str] = set()
    widths = [len(heading) for heading in _HEADINGS]
    waiting = iter(answers)
    headings = True
    while batch := list(islice(waiting, _SAMPLE)):
        blocks = [
            (list(_rows(answer)), [*_ways(answer), *_users(answer), *_new_notes(answer, said)])
            for answer in batch
        ]
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


def _ways(answer: Answer) -> Iterator[str]:
    """Give the ways down from the range, one line for each that its rows took."""
    ways: dict[tuple[str, ...], tuple[Via, ...]] = {}
    for owner in answer:
        if isinstance(owner.via, tuple):
            ways.setdefault(tuple(step.layer for step in owner.via), owner.via)
    for way in ways.values():
        yield "  " + " → ".join(f"{printable(step.layer)} {step.start}" for step in way)


def _users(answer: Answer) -> Iterator[str]:
    """Give a line for each process and file, and one that says if all of this still holds."""
    for owner in answer:
        if isinstance(owner, FileOwner) and isinstance(owner.processes, tuple):
            for process in owner.processes:
                yield f"  used: {_process(process)}, inode {owner.inode}: {_uses(process)}"
    if answer.verified is True:
        yield "  verified: the owners are still the same"


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
    new = [note for note in answer.notes if note not in said]
    said.update(new)
    remarks = answer.notes if answer.complete else answer.remarks or ()
    return [f"  {'note' if note in remarks else 'incomplete'}: {printable(note)}" for note in new]


def _rows(answer: Answer) -> Iterator[_Row]:
    for owner in answer:
        facts, paths = _facts(owner, complete=answer.complete)
        first, *more = paths or ("",)
        yield (str(owner.start), str(owner.length), owner.kind, *facts, first)
        for path in more:
            yield ("",) * (len(_HEADINGS) - 1) + (path,)


def _facts(owner: Owner, *, complete: bool) -> tuple[tuple[str, str, str, str], list[str]]:
    """Give inode, what, file offset and flags; and the paths, or what stands in their place."""
    flags = {
        "shared": isinstance(owner, FileOwner) and owner.shared,
        "unwritten": isinstance(owner, FileOwner) and owner.unwritten,
        "unlinked": isinstance(owner, FileOwner) and owner.unlinked is True,
        "incomplete": not complete,
    }
    marks = ",".join(name for name, true in flags.items() if true)
    if isinstance(owner, FileOwner):
        offset = "" if owner.file_offset is None else str(owner.file_offset)
        paths = [f"({owner.detail})"] if isinstance(owner.detail, str) else []
        paths += map(printable, owner.paths) if isinstance(owner.paths, tuple) else ()
        return (str(owner.inode), owner.what, offset, marks), paths
    if isinstance(owner, MetadataOwner):
        detail = [owner.detail] if isinstance(owner.detail, str) else []
        if isinstance(owner.inodes, tuple):
            detail.append(f"inodes {owner.inodes[0]} to {owner.inodes[1]}")
        return ("", owner.what, "", marks), [f"({text})" for text in detail]
    return ("", "", "", marks), [f"({owner.what})"] if isinstance(owner, Outside) else []


def _line(row: _Row, widths: list[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
    return "  ".join([*cells, row[-1]]).rstrip()
