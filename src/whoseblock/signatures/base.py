"""Signatures of formats, and the search for them at the places where they belong.

A signature is a magic number at a known place.  Short magic numbers are confirmed by other fields
of the same header, because arbitrary data may contain two certain bytes.
"""

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from whoseblock.errors import BlockError

__all__ = ["Kind", "Read", "Signature", "find_signatures"]

Kind = Literal["filesystem", "encrypted", "member", "swap", "table", "image", "compressed", "other"]
#: Returns the bytes of a range as far as the device has them, b"" if they cannot be read.
Read = Callable[[int, int], bytes]

#: Everything that is read at once: nearly all signatures are in it.
_HEAD: Final = 68 * 1024
_STEP: Final = 4096


class Signature(NamedTuple):
    """The magic numbers of a format.

    ``name`` is that of blkid(8) for what it knows.  ``title`` is for messages.  ``places`` are
    offsets with a magic number, one of which suffices; a negative offset counts from the end of the
    device.  ``confirm`` verifies more of the header at the offset that matched.  ``advice`` is what
    the user does next.  ``source`` publishes the format, and ``sample`` is the program that made
    the image in the tests, "" if only its header was crafted.
    """

    name: str
    title: str
    kind: Kind
    places: tuple[tuple[int, bytes], ...]
    advice: str = ""
    source: str = ""
    sample: str = ""
    confirm: Callable[[Read, int], bool] | None = None


class _Device:
    """A device that is read in few reads; ``unreadable`` is true once a read has failed."""

    def __init__(self, pread: Callable[[int, int], bytes], size: int) -> None:
        self._pread = pread
        self.size = size
        self.unreadable = False
        self._blocks: dict[int, bytes] = {}
        try:
            self._head = pread(0, min(_HEAD, size))
        except BlockError:
            self._head = b""

    def read(self, offset: int, length: int) -> bytes:
        """Return a range as far as the device has it; b"" if a part of it cannot be read."""
        end = min(offset + length, self.size)
        if offset < 0 or offset >= end:
            return b""
        if end <= len(self._head):
            return self._head[offset:end]
        first = offset // _STEP * _STEP
        blocks = [self._block(start) for start in range(first, end, _STEP)]
        if not all(blocks):
            return b""
        return b"".join(blocks)[offset - first : end - first]

    def _block(self, start: int) -> bytes:
        if start not in self._blocks:
            try:
                self._blocks[start] = self._pread(start, min(_STEP, self.size - start))
            except BlockError:
                self._blocks[start] = b""
                self.unreadable = True
        return self._blocks[start]


def find_signatures(
    signatures: Iterable[Signature], pread: Callable[[int, int], bytes], size: int
) -> tuple[tuple[Signature, ...], bool]:
    """Return the signatures on a device, and whether all places of the others were readable.

    ``pread`` returns exactly the bytes of a range, or raises `BlockError`.
    """
    device = _Device(pread, size)
    found = tuple(one for one in signatures if _is_on(one, device))
    return found, not device.unreadable


def _is_on(signature: Signature, device: _Device) -> bool:
    for offset, magic in signature.places:
        start = offset + device.size if offset < 0 else offset
        if device.read(start, len(magic)) == magic and (
            signature.confirm is None or signature.confirm(device.read, start)
        ):
            return True
    return False
