"""A medium made of parts of others: a partition, a logical volume, an array."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from whoseblock.errors import MediaError
from whoseblock.media.base import Media
from whoseblock.ranges import ByteRange, merge

__all__ = ["Copy", "MappedMedia", "MappedRun"]


class Copy(NamedTuple):
    """One place where bytes are kept; ``media`` is None if that medium is not at hand."""

    media: Media | None
    start: int
    #: What to call the medium if it is missing.
    name: str = ""


class MappedRun(NamedTuple):
    """The next ``length`` bytes of a range, and every copy of them; none: there is nothing."""

    length: int
    copies: tuple[Copy, ...]


class MappedMedia:
    """``size`` bytes; ``locate(start, length)`` gives the parts of a range in order.

    A part is read from the first of its copies that can be read.  Closing it closes nothing: the
    media below belong to whoever opened them, unless ``close_below`` is given.
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
        self.parts = locate
        self._close_below = close_below

    def pread(self, offset: int, length: int) -> bytes:
        """Give exactly ``length`` bytes; raises `MediaError` with the bytes that no copy gives."""
        if offset < 0 or offset + length > self.size:
            raise MediaError([ByteRange(offset, length)], "past the end of the device")
        data: list[bytes] = []
        bad: list[ByteRange] = []
        reason = ""
        place = offset
        for part in self.parts(offset, length):
            try:
                data.append(_read(part, place))
            except MediaError as error:
                bad += error.ranges
                reason = reason or error.reason
            place += part.length
        if bad:
            raise MediaError(merge(bad), reason)
        return b"".join(data)

    def close(self) -> None:
        """Let go of it."""
        self._close_below()


def _read(part: MappedRun, place: int) -> bytes:
    """Read the part that is at ``place`` of the whole; its errors are in the whole's terms."""
    bad = [ByteRange(place, part.length)]
    reason = "nothing is there"
    for number, copy in enumerate(part.copies):
        if copy.media is None:
            reason = f"not at hand: {copy.name or 'its device'}"
            continue
        try:
            return copy.media.pread(copy.start, part.length)
        except MediaError as error:
            if number == 0:
                shift = place - copy.start
                bad = [ByteRange(one.start + shift, one.length) for one in error.ranges]
            reason = error.reason
    raise MediaError(bad, reason)
