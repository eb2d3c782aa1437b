"""The initial extents of a study, from an image or generated.

In pages of 4 KiB throughout, as fsdax wants blocks to be.
"""

import random
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.fs.arrays import FORKS, KINDS, WHATS
from whoseblock.study.sizes import ENTRY_PAGES, PAGE

if TYPE_CHECKING:
    from whoseblock.fs.driver import Volume

__all__ = ["Extents", "PageExtent", "extents_of", "in_pieces", "made_up"]

_FILE, _FREE = KINDS.index("file"), KINDS.index("free")
_DATA_FORK, _DATA = FORKS.index("data"), WHATS.index("data")

#: Whole groups at once would do, but a question has to end somewhere.
_QUESTION: Final = 1 << 30


class PageExtent(NamedTuple):
    """``length`` pages of a file, from its page ``first``, that lie from ``page`` of the device."""

    mapping: int
    first: int
    page: int
    length: int


class Extents(NamedTuple):
    """The written extents of files, in file order, and the free extents, in order."""

    files: list[PageExtent]
    free: list[tuple[int, int]]
    pages: int
    #: Other pages: metadata, space never written, unknown owners.
    others: list[tuple[int, int]]


def extents_of(filesystem: "Volume") -> Extents:
    """Read the extents of a filesystem.

    Left out is what cannot be faulted in: metadata, attributes, and space that was never written,
    which a fault would first convert. Raises `UnsupportedError` where blocks are no pages.
    """
    if filesystem.block_size != PAGE:
        raise UnsupportedError(
            f"the study is about pages of {PAGE} bytes, and the filesystem has blocks of"
            f" {filesystem.block_size}",
            hint="fsdax needs blocks of the size of a page, too: make it with -b size=4096",
        )
    starts = range(0, filesystem.size, _QUESTION)
    lengths = [min(_QUESTION, filesystem.size - start) for start in starts]
    rows = filesystem.owners_of(list(starts), lengths)
    page, count = rows.start // PAGE, rows.length // PAGE
    written = (rows.kind == _FILE) & (rows.fork == _DATA_FORK) & (rows.what == _DATA)
    written &= ~rows.unwritten
    columns = (rows.inode, rows.file_offset // PAGE, page, count)
    parts = [column[written].tolist() for column in columns]
    files = _joined(sorted(map(PageExtent._make, zip(*parts, strict=True))))
    free = rows.kind == _FREE
    others = ~written & ~free
    return Extents(
        files,
        list(zip(page[free].tolist(), count[free].tolist(), strict=True)),
        filesystem.size // PAGE,
        list(zip(page[others].tolist(), count[others].tolist(), strict=True)),
    )


def _joined(extents: list[PageExtent]) -> list[PageExtent]:
    """Join extents that were only split by the ends of questions."""
    joined: list[PageExtent] = []
    for extent in extents:
        mapping, index, page, count = extent
        if joined:
            last = joined[-1]
            if (last.mapping, last.first + last.length, last.page + last.length) == extent[:3]:
                joined[-1] = PageExtent(last.mapping, last.first, last.page, last.length + count)
                continue
        joined.append(PageExtent(mapping, index, page, count))
    return joined


def made_up(pages: int, sharing: int, seed: int, *, longest: int = 256) -> Extents:
    """Generate about ``pages`` pages of data, each shared by ``sharing`` files.

    Groups of files share all that they have, like the clones of an image. Extents have 1 to
    ``longest`` pages, every length as likely; each eighth group is of one extent of 2 MiB, aligned.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    files: list[PageExtent] = []
    free: list[tuple[int, int]] = []
    at = group = 0
    left = pages
    while left > 0:
        group += 1
        whole = group % 8 == 0 and left >= ENTRY_PAGES
        lengths = [ENTRY_PAGES] if whole else _lengths(rng, min(left, ENTRY_PAGES), longest)
        index = 0
        for length in lengths:
            # Neighbours in the file are none on the device, or they would be one extent.
            gap = -at % ENTRY_PAGES if whole else rng.randint(1, 8)
            if gap:
                free.append((at, gap))
            at += gap
            clones = range(group * sharing, (group + 1) * sharing)
            files += (PageExtent(mapping, index, at, length) for mapping in clones)
            at += length
            index += length
        left -= index
    room = max(at // 4, ENTRY_PAGES)
    free.append((at, room))
    return Extents(sorted(files), free, at + room, [])


def in_pieces(pages: int, sharing: int, length: int) -> Extents:
    """Generate ``sharing`` files of about ``pages`` pages, in extents of ``length`` pages."""
    starts = range(0, max(pages // length, 1) * (length + 1), length + 1)
    files = [
        PageExtent(mapping, number * length, start, length)
        for mapping in range(1, sharing + 1)
        for number, start in enumerate(starts)
    ]
    return Extents(files, [(start + length, 1) for start in starts], starts.stop, [])


def _lengths(rng: random.Random, pages: int, longest: int) -> list[int]:
    lengths = []
    while pages > 0:
        lengths.append(min(rng.randint(1, longest), pages))
        pages -= lengths[-1]
    return lengths
