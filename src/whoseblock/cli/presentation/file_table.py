"""Ranges of files as a table for people."""

from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.file_ranges import FileRange, FileSummary
from whoseblock.fs.base import LayerLocation
from whoseblock.printable import printable

__all__ = ["file_lines"]

_HEADINGS: Final = ("FILE OFFSET", "LENGTH", "START", "WHAT", "FLAGS", "PLACES")
#: Columns are as wide as so many ranges need; later ones push them wider.
_SAMPLE: Final = 2048


def file_lines(found: Iterable[FileRange | FileSummary]) -> Iterator[str]:
    """Yield the table of each file as its ranges come, and below it a line about the file."""
    widths = list(map(len, _HEADINGS))
    held: list[FileRange] = []
    begun = False
    for item in found:
        if isinstance(item, FileRange):
            held.append(item)
        if held and (isinstance(item, FileSummary) or len(held) >= _SAMPLE):
            yield from _lines(held, widths, headings=not begun)
            held, begun = [], True
        if isinstance(item, FileSummary):
            yield from _ending(item)


def _lines(ranges: Iterable[FileRange], widths: list[int], *, headings: bool) -> Iterator[str]:
    rows = [row for one in ranges for row in _rows(one)]
    for row in rows:
        widths[:] = [max(width, len(cell)) for width, cell in zip(widths, row, strict=True)]
    for row in [_HEADINGS, *rows] if headings else rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _rows(one: FileRange) -> Iterator[tuple[str, ...]]:
    """Yield a row with the first copy of a range, and one for each other copy."""
    flags = {"shared": one.shared, "unwritten": one.unwritten}
    marks = [name for name, true in flags.items() if true]
    marks += [one.encoding] if isinstance(one.encoding, str) else []
    # The filesystem's own device is in the line about the file.
    ways = [_way(way) for way in one.places if len(one.places) > 1 or len(way) > 1] or [""]
    offset, start = ("" if at is None else str(at) for at in (one.file_offset, one.start))
    yield offset, str(one.length), start, one.what, ",".join(marks), ways[0]
    for way in ways[1:]:
        yield "", "", "", "", "", way


def _way(way: tuple[LayerLocation, ...]) -> str:
    return " → ".join(f"{printable(step.layer)} {step.start}" for step in way)


def _ending(file: FileSummary) -> Iterator[str]:
    number = f"{file.subvolume}/{file.inode}" if isinstance(file.subvolume, int) else file.inode
    size = "" if file.size is None else f", {file.size} bytes"
    ranges = "1 range" if file.ranges == 1 else f"{file.ranges} ranges"
    device = f" on {printable(file.device)}" if file.device else ""
    yield f"{printable(file.path)}: inode {number}{size}, {ranges}{device}"
    for note in file.notes:
        yield f"  {'note' if file.complete else 'incomplete'}: {printable(note)}"
