"""Chunks: how bytes of a device correspond to logical addresses.

Only the profiles of one device are read here: single and DUP, and the striped ones with one stripe.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.fs.btrfs.format.items import DUP, PROFILES, ChunkItem
from whoseblock.fs.btrfs.format.superblock import STRIPE

__all__ = ["Chunk", "ChunkMap", "StripeRun"]

_TOP: Final = 1 << 63
_PROFILE_NAMES: Final = {
    0x8: "RAID0",
    0x10: "RAID1",
    0x20: "DUP",
    0x40: "RAID10",
    0x80: "RAID5",
    0x100: "RAID6",
    0x200: "RAID1C3",
    0x400: "RAID1C4",
}
#: The profiles whose only stripe has the bytes in their order, if there is but one.
_LINEAR: Final = (0, 0x8, DUP)


class Chunk(NamedTuple):
    """``length`` bytes of logical addresses from ``start``; each of ``places`` has all of them."""

    start: int
    length: int
    type: int
    places: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first logical address past it."""
        return self.start + self.length


class StripeRun(NamedTuple):
    """A part of the device that ``chunk`` has, or no chunk if that is None."""

    start: int
    end: int
    chunk: Chunk | None
    place: int = 0


class ChunkMap:
    """The chunks of a filesystem on the only device that has the number ``device``.

    ``faults`` are the reasons why it may be incomplete.
    """

    def __init__(self, device: int, sector_size: int) -> None:
        self.faults: list[str] = []
        self._device = device
        self._sector = sector_size
        self._chunks: dict[int, Chunk] = {}
        self._starts: list[int] = []
        self._stripes: list[StripeRun] = []
        self._stripe_starts: list[int] = []

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks.values())

    def add(self, logical: int, item: ChunkItem | None) -> None:
        """Add a chunk; what cannot be followed becomes one of the faults."""
        what = f"chunk at logical address {logical}"
        if item is None:
            self.faults.append(f"{what}: damaged item")
            return
        profile = item.type & PROFILES
        if (
            not item.length
            or (logical | item.length) % self._sector
            or logical + item.length > _TOP
            or item.stripe_length != STRIPE
            or not item.type & 7
        ):
            self.faults.append(f"{what}: invalid length, place or type")
            return
        expected = 2 if profile == DUP else 1
        if profile not in _LINEAR or len(item.stripes) != expected:
            name = _PROFILE_NAMES.get(profile, f"{profile:#x}")
            self.faults.append(
                f"{what}: profile {name} with {len(item.stripes)} stripes is not followed yet"
            )
            return
        if any(device != self._device for device, _ in item.stripes):
            self.faults.append(f"{what}: it is on another device")
            return
        if any(offset % self._sector or offset + item.length > _TOP for _, offset in item.stripes):
            self.faults.append(f"{what}: invalid place on the device")
            return
        places = tuple(offset for _, offset in item.stripes)
        self._chunks[logical] = Chunk(logical, item.length, item.type, places)

    def finish(self) -> None:
        """Sort what was added; chunks that overlap others are left out."""
        chunks: list[Chunk] = []
        for start in sorted(self._chunks):
            chunk = self._chunks[start]
            if chunks and chunks[-1].end > start:
                self.faults.append(f"chunks overlap at logical address {start}")
                continue
            chunks.append(chunk)
        stripes = sorted(
            StripeRun(place, place + chunk.length, chunk, number)
            for chunk in chunks
            for number, place in enumerate(chunk.places)
        )
        kept: list[StripeRun] = []
        for stripe in stripes:
            if kept and kept[-1].end > stripe.start:
                self.faults.append(f"chunks overlap at byte {stripe.start} of the device")
                continue
            kept.append(stripe)
        self._chunks = {chunk.start: chunk for chunk in chunks}
        self._starts = list(self._chunks)
        self._stripes = kept
        self._stripe_starts = [one.start for one in kept]

    def find(self, logical: int) -> Chunk | None:
        """Return the chunk of a logical address."""
        index = bisect_right(self._starts, logical) - 1
        if index < 0:
            return None
        chunk = self._chunks[self._starts[index]]
        return chunk if logical < chunk.end else None

    def runs(self, start: int, end: int) -> Iterator[StripeRun]:
        """Cut a range of the device into stripes and what lies between them, in order."""
        index = max(bisect_right(self._stripe_starts, start) - 1, 0)
        at = start
        while at < end:
            while index < len(self._stripes) and self._stripes[index].end <= at:
                index += 1
            stripe = self._stripes[index] if index < len(self._stripes) else None
            if stripe is None or stripe.start >= end:
                yield StripeRun(at, end, None)
                return
            if at < stripe.start:
                yield StripeRun(at, stripe.start, None)
            low, high = max(at, stripe.start), min(end, stripe.end)
            yield StripeRun(low, high, stripe.chunk, stripe.place)
            at = high
