"""Map members of striped, mirrored and parity arrays to the array, and read the array from them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedRun
from whoseblock.media.striping import Cell, Striping
from whoseblock.stack.base import Layer, LayerMapping

__all__ = ["MemberReader", "MemberSegment", "locate_runs"]


class MemberSegment(NamedTuple):
    """The part of a layer that is member ``number`` of the array with the layer ``to``.

    The array begins at ``to_start`` of that layer: a striped segment may be a part of a volume.
    """

    start: int
    length: int
    to: Layer
    striping: Striping
    number: int
    to_start: int = 0
    what: str = ""

    def map_range(self, start: int, length: int) -> Iterable[LayerMapping]:
        """Map each chunk of a range of the layer, which must be within the segment."""
        chunk = self.striping.chunk
        remark = self.striping.redundancy and f"{self.to.name}: {self.striping.redundancy}"
        for offset, row, within, size in _split_at_chunks(start - self.start, length, chunk):
            content = self.striping.identify_cell(Cell(self.number, row))
            at = self.start + offset
            if isinstance(content, str):
                yield LayerMapping(at, size, what=f"{content} of {self.to.name}", remark=remark)
                continue
            to_start = self.to_start + content * chunk + within
            yield LayerMapping(at, size, self.to, to_start, remark=remark)

    def map_back(self, to_start: int, length: int) -> Iterable[tuple[int, int, int]]:
        """Map what the member has of a range of the array back to the layer, chunk by chunk."""
        chunk = self.striping.chunk
        begin = max(to_start - self.to_start, 0)
        end = to_start + length - self.to_start
        for offset, number, within, size in _split_at_chunks(begin, end - begin, chunk):
            for cell in self.striping.locate_chunk(number):
                at = cell.row * chunk + within
                inside = min(size, self.length - at)
                if cell.member == self.number and inside > 0:
                    yield self.start + at, inside, self.to_start + offset


class MemberReader(NamedTuple):
    """The medium of a member of an array, whose data begin at ``start``; None if it is missing."""

    media: Media | None
    start: int
    name: str = ""


def locate_runs(
    striping: Striping, members: Sequence[MemberReader], start: int, length: int
) -> Iterator[MappedRun]:
    """Yield the runs of a range of an array with every copy, for `MappedMedia`."""
    chunk = striping.chunk
    for _, number, within, size in _split_at_chunks(start, length, chunk):
        copies = tuple(
            Copy(
                members[cell.member].media,
                members[cell.member].start + cell.row * chunk + within,
                members[cell.member].name,
            )
            for cell in striping.locate_chunk(number)
        )
        yield MappedRun(size, copies)


def _split_at_chunks(start: int, length: int, chunk: int) -> Iterator[tuple[int, int, int, int]]:
    """Split a range at chunks; yield start, number of the chunk, offset in it and length."""
    end = start + length
    while start < end:
        number, within = divmod(start, chunk)
        size = min(end - start, chunk - within)
        yield start, number, within, size
        start += size
