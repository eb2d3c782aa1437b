"""Many questions about a mounted filesystem at once: each inode is opened and confirmed once.

The steps are those of one question, each for all of them: GETFSMAP, a scan of the inodes, a
confirmation by handle and FIEMAP, and in the end GETFSMAP and the inodes once more.  Only questions
that nothing has touched meanwhile are settled.  Any other, and any with a note, is asked alone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from whoseblock.fs.ext4.format.inode import Inode
from whoseblock.fs.ext4.mounted.owners import LiveAnswers, LiveOwners
from whoseblock.fs.pieces import FILE, Piece
from whoseblock.fs.scan.engine import Wanted

__all__ = ["Settled", "near_runs", "settle"]


class Settled(NamedTuple):
    """The pieces of questions, each ``(start, length)`` in bytes, and the inodes they name."""

    answers: dict[tuple[int, int], list[Piece]]
    inodes: dict[int, Inode]


def settle(
    owners: LiveOwners,
    questions: Collection[tuple[int, int]],
    read_pieces: Callable[[Wanted], list[Piece]],
) -> Settled:
    """Answer as many questions as are certain by one scan and one confirmation of each inode.

    ``read_pieces`` returns what GETFSMAP says of ranges in bytes, in order; it may raise OSError.
    """
    volume = owners.live.volume
    size, ratio = volume.block_size, volume.ratio
    union = Wanted(
        (start // size * size, -(-(start + length) // size) * size) for start, length in questions
    )
    before = read_pieces(union)
    segments = owners.segments(before)
    wanted = owners.clusters(segments)
    owners.prepare(wanted)
    confirmed = owners.confirmed(wanted)
    lost = owners.unexplained(wanted, confirmed.extents)
    moved = _differences(before, read_pieces(union), size)
    # The last step: an inode that was confirmed before others must still be the same.
    changed = confirmed.changed(owners.live)
    gone = ((one.start, one.end) for one in confirmed.extents if one.inode in changed)
    doubtful = Wanted([*zip(lost.lows, lost.highs, strict=True), *moved, *gone])
    answers = LiveAnswers(owners, segments, owners.found_of(confirmed.extents))
    settled: dict[tuple[int, int], list[Piece]] = {}
    for start, length in questions:
        low = start // size // ratio * ratio
        high = -(-(start + length) // (size * ratio)) * ratio
        if any(doubtful.within(low, high)):
            continue
        found = answers.of(start, length)
        owned = (piece.inode for piece in found.pieces if piece.kind == FILE)
        if not found.notes and all(inode in confirmed.inodes for inode in owned):
            settled[start, length] = found.pieces
    return Settled(settled, confirmed.inodes)


def _differences(
    before: Sequence[Piece], after: Sequence[Piece], size: int
) -> Iterator[tuple[int, int]]:
    """Yield the blocks of which the kernel reports another thing than before."""
    old, new = 0, 0
    while old < len(before) and new < len(after):
        one, two = before[old], after[new]
        low, high = max(one.start, two.start), min(one.end, two.end)
        if low < high and (one.kind, one.what) != (two.kind, two.what):
            yield low // size, -(-high // size)
        old += one.end == high
        new += two.end == high


def near_runs(asked: Wanted, near: int) -> Iterator[tuple[int, int]]:
    """Yield runs of ranges with less than ``near`` bytes between one and the next."""
    start = end = 0
    for low, high in zip(asked.lows, asked.highs, strict=True):
        if low - end >= near and start < end:
            yield start, end
        if start == end or low - end >= near:
            start = low
        end = high
    if start < end:
        yield start, end
