"""Persistent memory with poison, emulated.

The rules are those of the kernel's pmem driver (``pmem_do_read`` and ``pmem_do_write`` in
drivers/nvdimm/pmem.c): a read that touches a bad sector fails as a whole, and a write of whole
sectors clears the poison of exactly these sectors.  A disk that still has spare sectors does the
same.  One that has none left keeps sectors which fail whatever is written: the stubborn ones.
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

    ``poison`` and ``stubborn`` are widened to whole sectors of ``sector`` bytes; what is in both is
    stubborn.  Its size is that of ``base`` in whole sectors.  Writing needs a ``base`` that is
    writable.  Threads may share it: each call sees and leaves lists that fit the data.

    Raises `OutOfDeviceError` for a range that ends past the end.
    """

    def __init__(
        self,
        base: Media,
        poison: Iterable[ByteRange] = (),
        *,
        stubborn: Iterable[ByteRange] = (),
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
        self.change(Change("stubborn", bad) for bad in stubborn)

    def inject(self, bad: ByteRange) -> None:
        """Poison every sector that ``bad`` touches."""
        self.change([Change("bad", bad)])

    def change(self, changes: Iterable[Change]) -> None:
        """Mark sectors in the order given: all that is asked for, or nothing if it raises."""
        with self._lock:
            changed = self._sectors.copy()
            for change in changes:
                if not 0 <= change.where.start < change.where.end <= self.size:
                    raise OutOfDeviceError(
                        f"the range {change.where} is not within {self.name!r}, of which"
                        f" {self.size} bytes are whole sectors",
                        hint="offsets count from the start of the device or image that is named",
                    )
                changed.apply(change)
            self._sectors = changed

    def pread(self, offset: int, length: int) -> bytes:
        """Give exactly ``length`` bytes; raises `MediaError` with the poisoned part of them."""
        asked = ByteRange(offset, length)
        with self._lock, self._counted("reads", "reads_failed"):
            self._raise_if(self._sectors.failing(asked), asked, "input/output error")
            return self._base.pread(offset, length)

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write ``data``, healing the sectors that it covers whole.

        Raises `MediaError`, with nothing written, if a stubborn sector is touched, or if a poisoned
        one is covered in part: a processor would have to read it to merge the rest.
        """
        written = ByteRange(offset, len(data))
        with self._lock, self._counted("writes", "writes_refused"):
            reason = "write to a stubborn sector, or to part of a poisoned one"
            self._raise_if(self._sectors.refusing(written), written, reason)
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
        """Have what was written outlast a failure of the machine, where the base is to."""
        if self._writable is not None:
            self._writable.sync()

    @property
    def poison(self) -> list[ByteRange]:
        """What a write heals: disjoint, ascending."""
        return self.lists()[0]

    @property
    def stubborn(self) -> list[ByteRange]:
        """What nothing heals: disjoint, ascending."""
        return self.lists()[1]

    def lists(self) -> tuple[list[ByteRange], list[ByteRange]]:
        """Give `poison` and `stubborn` of one moment."""
        with self._lock:
            return self._sectors.bad, self._sectors.stubborn

    @property
    def badblocks(self) -> str:
        """All bad sectors as /sys/block/pmemN/badblocks shows them: lines ``SECTOR COUNT``."""
        poison, stubborn = self.lists()
        return "".join(
            f"{bad.start // SECTOR} {bad.length // SECTOR}\n" for bad in merge([*poison, *stubborn])
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many ``reads`` and ``writes`` there were, how many failed, what was healed."""
        names = ("reads", "reads_failed", "writes", "writes_refused", "sectors_healed")
        with self._lock:
            return {name: self._counts[name] for name in names}

    def close(self) -> None:
        """Close the base."""
        self._base.close()
