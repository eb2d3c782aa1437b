"""Emulated persistent memory with poison.

The rules are those of the kernel's pmem driver (``pmem_do_read`` and ``pmem_do_write`` in
drivers/nvdimm/pmem.c). A read that touches a bad sector fails as a whole. A write of whole sectors
clears the poison of exactly these sectors. A disk with spare sectors behaves alike. Permanent bad
sectors, as on a disk without spares, fail whatever is written.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from whoseblock.errors import MediaError, OutOfDeviceError
from whoseblock.media.base import Media, WritableMedia
from whoseblock.media.device import SECTOR
from whoseblock.media.sectors import BadSectors, Change
from whoseblock.ranges import ByteRange, merge

__all__ = ["EmulatedPmem"]


class EmulatedPmem:
    """An image in which some ranges are poisoned.

    ``poison`` and ``permanent`` ranges are widened to sectors of ``sector`` bytes; a
    sector in both is permanent. The size is that of ``base`` in whole sectors. Writing needs a
    writable ``base``. Threads may share it: every call uses lists that match the data.

    Raises `OutOfDeviceError` for a range that ends past the end.
    """

    def __init__(
        self,
        base: Media,
        poison: Iterable[ByteRange] = (),
        *,
        permanent: Iterable[ByteRange] = (),
        sector: int = SECTOR,
    ) -> None:
        self._base = base
        self._writable = base if isinstance(base, WritableMedia) else None
        self._lock = Lock()
        self._sectors = BadSectors(sector)
        self._counts: Counter[str] = Counter()
        self.name = base.name
        self.sector = sector
        self.size = base.size // sector * sector
        self.change(Change("bad", bad) for bad in poison)
        self.change(Change("permanent", bad) for bad in permanent)

    def inject(self, bad: ByteRange) -> None:
        """Poison every sector that ``bad`` touches."""
        self.change([Change("bad", bad)])

    def change(self, changes: Iterable[Change]) -> None:
        """Mark sectors in the given order; if it raises, no mark has changed."""
        with self._lock:
            changed = self._sectors.copy()
            for change in changes:
                if not 0 <= change.where.start < change.where.end <= self.size:
                    raise OutOfDeviceError(
                        f"the range {change.where} is not within {self.name!r}, which has"
                        f" {self.size} bytes in whole sectors",
                        hint="offsets count from the start of the device or image that is named",
                    )
                changed.apply(change)
            self._sectors = changed

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises `MediaError` with the bad ones of them."""
        asked = ByteRange(offset, length)
        with self._lock, self._counted("reads", "reads_failed"):
            self._raise_if(self._sectors.find_unreadable(asked), asked, "input/output error")
            return self._base.pread(offset, length)

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write ``data``, which heals the sectors that it covers completely.

        Raises `MediaError`, with nothing written, if it touches a permanent bad sector, or covers a
        poisoned one in part: a processor would have to read it to merge the rest.
        """
        written = ByteRange(offset, len(data))
        with self._lock, self._counted("writes", "writes_refused"):
            reason = "write to a permanent bad sector, or to part of a poisoned one"
            self._raise_if(self._sectors.find_unwritable(written), written, reason)
            if self._writable is None:
                raise TypeError(f"{self.name} cannot be written")
            self._writable.pwrite(offset, data)
            self._counts["sectors_healed"] += self._sectors.heal(written)

    def _raise_if(self, bad: list[ByteRange], asked: ByteRange, reason: str) -> None:
        if asked.end > self.size:
            raise MediaError([asked], "past the end of the device")
        if bad:
            raise MediaError(bad, reason)

    @contextmanager
    def _counted(self, what: str, failed: str) -> Iterator[None]:
        self._counts[what] += 1
        try:
            yield
        except MediaError:
            self._counts[failed] += 1
            raise

    def sync(self) -> None:
        """Flush written data of a writable base to stable storage."""
        if self._writable is not None:
            self._writable.sync()

    @property
    def poison(self) -> list[ByteRange]:
        """The bad ranges that a write heals: disjoint, ascending."""
        return self.lists()[0]

    @property
    def permanent(self) -> list[ByteRange]:
        """The permanent bad ranges: disjoint, ascending."""
        return self.lists()[1]

    def lists(self) -> tuple[list[ByteRange], list[ByteRange]]:
        """Return `poison` and `permanent` of the same moment."""
        with self._lock:
            return self._sectors.bad, self._sectors.permanent

    @property
    def badblocks(self) -> str:
        """All bad sectors in the form of /sys/block/pmemN/badblocks: lines ``SECTOR COUNT``."""
        poison, permanent = self.lists()
        return "".join(
            f"{bad.start // SECTOR} {bad.length // SECTOR}\n"
            for bad in merge([*poison, *permanent])
        )

    @property
    def counts(self) -> dict[str, int]:
        """The number of reads, writes, failures of each, and healed sectors."""
        names = ("reads", "reads_failed", "writes", "writes_refused", "sectors_healed")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def close(self) -> None:
        """Close the base."""
        self._base.close()
