"""The filesystem of the study: the pages of each file, and the files of each page.

It begins as an image has it. What a workload changes is kept here only, as a filesystem keeps in
its log what it has not written back; `changed` says which pages that concerns.

For every page the owners are those of its *segment*: the longest run of pages that the same files
have, one behind the other. These are the runs of the refcount btree, but that two neighbours with
as many owners, though other ones, are two.
"""

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.study.base import INDEX_BITS, key_of
from whoseblock.study.simulation.extents import Extents, PageExtent
from whoseblock.study.simulation.intervals import Intervals

__all__ = ["Segment", "Space"]


class Segment(NamedTuple):
    """Pages from ``start`` up to ``end``, and the keys of the owners of its first page, ascending.

    The owners of the page after that have the keys after those, and so on. Free pages have no
    owners.
    """

    start: int
    end: int
    keys: tuple[int, ...]


class Space:
    """The mapping between files and pages, in both directions."""

    def __init__(self, extents: Extents) -> None:
        self.pages = extents.pages
        self.changed = Intervals()
        #: Records of the rmap btree that were put in, taken out, or changed.
        self.rmap_updates = 0
        #: By their first key: (key, page, count). A file's follow one another.
        self._files: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for mapping, index, page, count in extents.files:
            self._files[mapping].append((key_of(mapping, index), page, count))
        self._segments = _segments(extents.files)
        self._starts = [segment.start for segment in self._segments]
        self._free = sorted(extents.free, key=lambda run: run[1])
        #: The last answer: all designs ask about the same fault, which asks only once.
        self._answer = _NONE

    # ------------------------------------------------------------------ asking

    def mappings(self) -> list[int]:
        """Return the files, in order."""
        return sorted(mapping for mapping, extents in self._files.items() if extents)

    def extents(self, mapping: int) -> list[PageExtent]:
        """Return the extents of a file, in order."""
        first = mapping << INDEX_BITS
        return [
            PageExtent(mapping, key - first, page, count) for key, page, count in self._of(mapping)
        ]

    def _of(self, mapping: int) -> list[tuple[int, int, int]]:
        return self._files.get(mapping, [])

    def end(self, mapping: int) -> int:
        """Return the index after the last page of a file."""
        extents = self._of(mapping)
        return extents[-1][0] + extents[-1][2] - (mapping << INDEX_BITS) if extents else 0

    def page_of(self, key: int) -> int | None:
        """Return the page of the device for a page of a file, if there is one."""
        extents = self._of(key >> INDEX_BITS)
        at = bisect_right(extents, key, key=_key) - 1
        if at >= 0:
            first, page, count = extents[at]
            if key - first < count:
                return page + key - first
        return None

    def segment_at(self, page: int) -> Segment:
        """Return the run of pages with the same owners as ``page``."""
        answer = self._answer
        if answer.start <= page < answer.end:
            return answer
        at = bisect_right(self._starts, page) - 1
        before = 0
        if at >= 0:
            answer = self._segments[at]
            if page < answer.end:
                self._answer = answer
                return answer
            before = answer.end
        after = self._starts[at + 1] if at + 1 < len(self._starts) else self.pages
        return Segment(before, after, ())

    def keys(self, page: int) -> list[int]:
        """Return the keys of the owners of a page, ascending."""
        segment = self.segment_at(page)
        distance = page - segment.start
        return [key + distance for key in segment.keys]

    def segments(self) -> Iterator[Segment]:
        """Return all segments of files, in the order of the device."""
        return iter(self._segments)

    # ------------------------------------------------------------------ changing

    def remove(self, mapping: int, index: int, count: int) -> list[PageExtent]:
        """Remove ``count`` pages from ``index`` of a file; return the removed extents."""
        low = key_of(mapping, index)
        high = low + count
        extents = self._of(mapping)
        at = bisect_right(extents, low, key=_key)
        at -= at > 0 and extents[at - 1][0] + extents[at - 1][2] > low
        removed, left, upto = [], [], at
        while upto < len(extents) and extents[upto][0] < high:
            first, page, length = extents[upto]
            begin, end = max(first, low), min(first + length, high)
            at_index = begin - (mapping << INDEX_BITS)
            removed.append(PageExtent(mapping, at_index, page + begin - first, end - begin))
            if begin > first:
                left.append((first, page, begin - first))
            if first + length > end:
                left.append((end, page + end - first, first + length - end))
            # A record that is cut in two is one changed and one put in.
            self.rmap_updates += 2 if begin > first and first + length > end else 1
            upto += 1
        extents[at:upto] = left
        for extent in removed:
            self._change(extent, add=False)
        return removed

    def add(self, extent: PageExtent) -> None:
        """Add pages of the device to a hole of a file."""
        key = first = key_of(extent.mapping, extent.first)
        page, count = extent.page, extent.length
        extents = self._files[extent.mapping]
        at = upto = bisect_left(extents, key, key=_key)
        if at and _follow(extents[at - 1], (key, page, count)):
            at -= 1
            first, page, _ = extents[at]
        if upto < len(extents) and _follow((key, extent.page, count), extents[upto]):
            count += extents[upto][2]
            upto += 1
        # One record put in, or one changed; or one changed and the other taken out.
        self.rmap_updates += 2 if upto - at == 2 else 1  # noqa: PLR2004 - neighbours on both sides
        extents[at:upto] = [(first, page, count + key - first)]
        self._change(extent, add=True)

    def reflink(self, source: PageExtent, mapping: int, index: int) -> list[PageExtent]:
        """Share an extent of one file with another, in place of what that had; gives the latter."""
        removed = self.remove(mapping, index, source.length)
        self.add(PageExtent(mapping, index, source.page, source.length))
        return removed

    def allocate(self, count: int) -> int | None:
        """Allocate ``count`` contiguous pages, from the shortest free run that has them."""
        at = bisect_left(self._free, count, key=lambda run: run[1])
        if at == len(self._free):
            return None
        page, length = self._free.pop(at)
        if length > count:
            self._put_free(page + count, length - count)
        return page

    def is_free(self, page: int) -> bool:
        """Return whether a page that was free or of files in the image is free now."""
        return not self.segment_at(page).keys

    def _put_free(self, page: int, count: int) -> None:
        insort(self._free, (page, count), key=lambda run: run[1])

    def _change(self, extent: PageExtent, *, add: bool) -> None:
        """Add or remove one owner of a run of pages."""
        start, end = extent.page, extent.page + extent.length
        key = key_of(extent.mapping, extent.first)
        self.changed.add(start, end)
        self._answer = _NONE
        first, last = self._cut(start), self._cut(end)
        new: list[Segment] = []
        at = start
        for segment in self._segments[first:last]:
            if segment.start > at:
                new.append(Segment(at, segment.start, (key + at - start,)))
            one = key + segment.start - start
            keys = [held for held in segment.keys if held != one]
            if add:
                insort(keys, one)
            if keys:
                new.append(Segment(segment.start, segment.end, tuple(keys)))
            else:
                self._put_free(segment.start, segment.end - segment.start)
            at = segment.end
        if add and at < end:
            new.append(Segment(at, end, (key + at - start,)))
        self._put(first, last, new)

    def _cut(self, page: int) -> int:
        """Split the segment across the start of ``page``; return the index of the later part."""
        at = bisect_left(self._starts, page)
        if at and self._segments[at - 1].end > page:
            start, end, keys = self._segments[at - 1]
            self._segments[at - 1] = Segment(start, page, keys)
            moved = tuple(key + page - start for key in keys)
            self._segments.insert(at, Segment(page, end, moved))
            self._starts.insert(at, page)
        return at

    def _put(self, first: int, last: int, new: list[Segment]) -> None:
        """Put segments in the place of others, and join what has become one."""
        if first:
            first -= 1
            new.insert(0, self._segments[first])
        if last < len(self._segments):
            new.append(self._segments[last])
            last += 1
        joined: list[Segment] = []
        for segment in new:
            if joined and _continues(joined[-1], segment):
                joined[-1] = joined[-1]._replace(end=segment.end)
            else:
                joined.append(segment)
        self._segments[first:last] = joined
        self._starts[first:last] = [segment.start for segment in joined]


#: Answers for no page.
_NONE: Final = Segment(0, 0, ())


def _follow(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Return whether one extent of a file continues in the other, in the file and on the device."""
    return (one[0] + one[2], one[1] + one[2]) == other[:2]


def _key(extent: tuple[int, int, int]) -> int:
    return extent[0]


def _continues(one: Segment, other: Segment) -> bool:
    """Return whether both segments have the same files and are adjacent."""
    if one.end != other.start or len(one.keys) != len(other.keys):
        return False
    length = one.end - one.start
    return all(key + length == after for key, after in zip(one.keys, other.keys, strict=True))


def _segments(files: list[PageExtent]) -> list[Segment]:
    """Cut overlapping extents where any begins or ends."""
    import numpy as np

    if not files:
        return []
    mapping, index, page, count = (np.array(column) for column in zip(*files, strict=True))
    bounds = np.unique(np.concatenate((page, page + count)))
    first, last = np.searchsorted(bounds, page), np.searchsorted(bounds, page + count)
    pieces = last - first
    which = np.repeat(np.arange(page.size), pieces)
    segment = np.arange(which.size) - np.repeat(np.cumsum(pieces) - pieces - first, pieces)
    place = index[which] + bounds[segment] - page[which]
    order = np.lexsort((place, mapping[which], segment))
    segments: list[Segment] = []
    keys: list[int] = []
    numbers = segment[order].tolist()
    owners = mapping[which][order].tolist()
    places = place[order].tolist()
    edges = bounds.tolist()
    for at, number in enumerate(numbers):
        keys.append(key_of(owners[at], places[at]))
        if at + 1 == len(numbers) or numbers[at + 1] != number:
            new = Segment(edges[number], edges[number + 1], tuple(keys))
            keys = []
            if segments and _continues(segments[-1], new):
                segments[-1] = segments[-1]._replace(end=new.end)
            else:
                segments.append(new)
    return segments
