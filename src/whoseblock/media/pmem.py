"""Persistent memory with poison, emulated.

The rules are those of the kernel's pmem driver (``pmem_do_read`` and ``pmem_do_write`` in
drivers/nvdimm/pmem.c): a read that touches a bad sector fails as a whole, and a write of whole
sectors clears the poison of exactly these sectors.
"""

from collections.abc import Iterable

from whoseblock.errors import MediaError
from whoseblock.media.base import Media
from whoseblock.media.device import SECTOR, FileMedia
from whoseblock.ranges import ByteRange, merge, subtract

__all__ = ["EmulatedPmem"]


class EmulatedPmem:
    """An image in which some ranges are poisoned.

    ``poison`` is widened to whole sectors.  Writing needs a ``base`` that is writable.
    """

    def __init__(self, base: Media, poison: Iterable[ByteRange] = ()) -> None:
        self._base = base
        self.name = base.name
        self.size = base.size
        self.poison: list[ByteRange] = []
        for bad in poison:
            self.inject(bad)

    def inject(self, bad: ByteRange) -> None:
        """Poison every sector that ``bad`` touches."""
        start = bad.start // SECTOR * SECTOR
        end = -(-bad.end // SECTOR) * SECTOR
        self.poison = merge([*self.poison, ByteRange(start, end - start)])

    def _poisoned(self, asked: ByteRange) -> list[ByteRange]:
        before, after = ByteRange(0, asked.start), ByteRange(asked.end, self.size)
        return subtract(subtract(self.poison, before), after)

    def pread(self, offset: int, length: int) -> bytes:
        """Give exactly ``length`` bytes; raises `MediaError` with the poisoned part of them."""
        if bad := self._poisoned(ByteRange(offset, length)):
            raise MediaError(bad)
        return self._base.pread(offset, length)

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write ``data``, healing the sectors that it covers whole.

        Raises `MediaError`, with nothing written, if a poisoned sector is covered in part: a
        processor would have to read it to merge the rest.
        """
        first = -(-offset // SECTOR) * SECTOR
        last = (offset + len(data)) // SECTOR * SECTOR
        whole = ByteRange(first, max(last - first, 0))
        if bad := subtract(self._poisoned(ByteRange(offset, len(data))), whole):
            raise MediaError(bad, "write to part of a poisoned sector")
        if not isinstance(self._base, FileMedia):
            raise TypeError(f"{self.name} cannot be written")
        self._base.pwrite(offset, data)
        self.poison = subtract(self.poison, whole)

    @property
    def badblocks(self) -> str:
        """The poison as /sys/block/pmemN/badblocks shows it: lines ``SECTOR COUNT``."""
        return "".join(f"{bad.start // SECTOR} {bad.length // SECTOR}\n" for bad in self.poison)

    def close(self) -> None:
        """Close the base."""
        self._base.close()
