"""A medium mapped to ranges of other media: a partition, a logical volume, an array."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple

from whoseblock.errors import MediaError
from whoseblock.media.base import Media, next_data
from whoseblock.ranges import ByteRange, merge

__all__ = ["Copy", "MappedMedia", "MappedRun"]


#: So many runs are searched at once for the end of a hole.
_HOLE_RUNS: Final = 1024


class Copy(NamedTuple):
    """A range of a medium with a copy of the data; ``media`` is None if the medium is missing."""

    media: Media | None
    start: int
    #: The name of a missing medium in messages.
    name: str = ""


class MappedRun(NamedTuple):
    """The next ``length`` bytes of a range, with every copy; unmapped if there is none."""

    length: int
    copies: tuple[Copy, ...]


class MappedMedia:
    """A medium of ``size`` bytes; ``locate(start, length)`` yields the runs of a range in order.

    A run is read from the first readable copy. Closing it leaves the media below open, unless
    ``close_below`` closes them.
    """

    def __init__(
        self,
        name: str,
        size: int,
        locate: Callable[[int, int], Iterable[MappedRun]],
        *,
        close_below: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.size = size
        self.locate = locate
        self._close_below = close_below

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises `MediaError` with those that no copy has."""
        if offset < 0 or offset + length > self.size:
            raise MediaError([ByteRange(offset, length)], "past the end of the device")
        data: list[bytes] = []
        bad: list[ByteRange] = []
        reason = ""
        at = offset
        for run in self.locate(offset, length):
            try:
                data.append(_read_run(run, at))
            except MediaError as error:
                bad += error.ranges
                reason = reason or error.reason
            at += run.length
        if bad:
            raise MediaError(merge(bad), reason)
        return b"".join(data)

    def next_data(self, offset: int) -> int:
        """Return an offset up to which the medium has only zeros from ``offset`` on."""
        at = offset
        for run in islice(self.locate(offset, self.size - offset), _HOLE_RUNS):
            copy = run.copies[0] if len(run.copies) == 1 else None
            if copy is None or copy.media is None:
                return at
            found = next_data(copy.media, copy.start) - copy.start
            if found < run.length:
                return at + found
            at += run.length
        return at

    def close(self) -> None:
        """Close the medium."""
        self._close_below()


def _read_run(run: MappedRun, offset: int) -> bytes:
    """Read a run at ``offset`` of the mapped medium; errors have offsets in that medium."""
    bad = [ByteRange(offset, run.length)]
    reason = "not mapped"
    for number, copy in enumerate(run.copies):
        if copy.media is None:
            reason = f"missing: {copy.name or 'its device'}"
            continue
        try:
            return copy.media.pread(copy.start, run.length)
        except MediaError as error:
            if number == 0:
                shift = offset - copy.start
                bad = [ByteRange(one.start + shift, one.length) for one in error.ranges]
            reason = error.reason
    raise MediaError(bad, reason)
