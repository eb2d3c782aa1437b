"""Chunks: how bytes of the devices correspond to logical addresses, in every profile.

A chunk has a stripe on each of its devices.  Where a stripe has which bytes is the arithmetic of
arrays, `whoseblock.media.striping`, as in fs/btrfs/volumes.c of Linux (btrfs_map_block()).
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from whoseblock.fs.btrfs.format.items import PROFILES, ChunkItem
from whoseblock.fs.btrfs.format.superblock import STRIPE
from whoseblock.fs.btrfs.parity import two_lost, without_p
from whoseblock.media.striping import RIGHT_SYMMETRIC, Cell, Raid0, Raid1, Raid5, Raid10, Striping

__all__ = ["Chunk", "ChunkMap", "LogicalPart", "Place", "StripeCell", "StripeRun"]

_TOP: Final = 1 << 63
#: The layout of md that places two copies side by side.
_TWO_NEAR: Final = 0x102
_SUB_STRIPES: Final = 2


class _Profile(NamedTuple):
    """A profile: its name, and how many stripes a chunk has at least and at most.

    Each byte is on ``copies`` stripes; ``parities`` stripes of each row have parity.
    """

    name: str
    fewest: int
    most: int
    copies: int = 1
    parities: int = 0
    is_striped: bool = False


_MOST_STRIPES: Final = 1 << 12
#: So many of the data of a row are each taken for the second that is lost.
_MOST_REBUILT: Final = 32
_PROFILES: Final = {
    0: _Profile("single", 1, 1),
    0x8: _Profile("RAID0", 1, _MOST_STRIPES, is_striped=True),
    0x10: _Profile("RAID1", 2, 2, copies=2),
    0x20: _Profile("DUP", 2, 2, copies=2),
    0x40: _Profile("RAID10", 2, _MOST_STRIPES, copies=2, is_striped=True),
    0x80: _Profile("RAID5", 2, _MOST_STRIPES, parities=1, is_striped=True),
    0x100: _Profile("RAID6", 3, _MOST_STRIPES, parities=2, is_striped=True),
    0x200: _Profile("RAID1C3", 3, 3, copies=3),
    0x400: _Profile("RAID1C4", 4, 4, copies=4),
}
_KINDS: Final = ((1, "data"), (2, "system"), (4, "metadata"))


class Place(NamedTuple):
    """Byte ``start`` of the device with a number."""

    device: int
    start: int


class LogicalPart(NamedTuple):
    """The next ``length`` logical addresses: the sum of the places of a choice is their bytes.

    Choices with several places rebuild the bytes from parity.  Each place comes with the factor of
    its bytes; see `whoseblock.fs.btrfs.parity`.
    """

    length: int
    choices: tuple[tuple[tuple[Place, int], ...], ...]


class StripeCell(NamedTuple):
    """``length`` bytes from ``start`` of a device: logical addresses from ``logical`` on.

    If ``parity`` names one, they are the parity of those addresses.
    """

    start: int
    length: int
    logical: int
    parity: str = ""


class Chunk(NamedTuple):
    """``length`` bytes of logical addresses from ``start``, which lie on ``stripes``."""

    start: int
    length: int
    type: int
    stripes: tuple[Place, ...]

    @property
    def end(self) -> int:
        """The first logical address past it."""
        return self.start + self.length

    @property
    def profile(self) -> _Profile:
        """Its profile."""
        return _PROFILES[self.type & PROFILES]

    @property
    def striping(self) -> Striping:
        """The arithmetic of its stripes."""
        return _make_striping(self.type & PROFILES, len(self.stripes), self.length)

    @property
    def row_length(self) -> int:
        """The logical addresses of which each row of all stripes has the bytes."""
        return self.length // (self.stripe_length // self.striping.chunk)

    @property
    def stripe_length(self) -> int:
        """The bytes of each of its devices that it has."""
        profile = self.profile
        if not profile.is_striped:
            return self.length
        return self.length * profile.copies // (len(self.stripes) - profile.parities)

    @property
    def tolerance(self) -> int:
        """The number of its stripes that may be missing, wherever they are."""
        return self.profile.copies - 1 + self.profile.parities

    @property
    def description(self) -> str:
        """Its use and its profile, in two words."""
        kinds = "+".join(name for bit, name in _KINDS if self.type & bit)
        return f"{kinds} {self.profile.name}"

    def places(self, logical: int) -> tuple[int, tuple[Place, ...]]:
        """Return how many bytes from an address on lie together, and where, for each copy."""
        number, within = divmod(logical - self.start, self.striping.chunk)
        places = tuple(self._place(cell, within) for cell in self.striping.locate_chunk(number))
        return self.striping.chunk - within, places

    def _place(self, cell: Cell, within: int) -> Place:
        device, offset = self.stripes[cell.member]
        return Place(device, offset + cell.row * self.striping.chunk + within)

    def parts(self, logical: int, length: int) -> Iterator[LogicalPart]:
        """Yield where the bytes of a range of its addresses can be read, in order."""
        end = logical + length
        while logical < end:
            room, places = self.places(logical)
            size = min(room, end - logical)
            choices: list[tuple[tuple[Place, int], ...]] = [((place, 1),) for place in places]
            if self.profile.parities:
                choices += self._rebuilt(logical)
            yield LogicalPart(size, tuple(choices))
            logical += size

    def _rebuilt(self, logical: int) -> Iterator[tuple[tuple[Place, int], ...]]:
        """Yield the places of the row of a byte that give it together, and their factors."""
        number, within = divmod(logical - self.start, self.striping.chunk)
        count = len(self.stripes) - self.profile.parities
        own = number % count
        first = number - own
        data = [
            self._place(cell, within)
            for other in range(first, first + count)
            for cell in self.striping.locate_chunk(other)
        ]
        (cell,) = self.striping.locate_chunk(number)
        parity = {
            what: self._place(one, within)
            for one in (Cell(member, cell.row) for member in range(len(self.stripes)))
            if isinstance(what := self.striping.identify_cell(one), str)
        }
        others = [place for place in data if place != data[own]]
        p = parity.get("parity") or parity["parity (P)"]
        yield tuple((place, 1) for place in (*others, p))
        if (q := parity.get("parity (Q)")) is None:
            return
        yield tuple(zip((*others, q), without_p(own, count), strict=True))
        for other in range(min(count, _MOST_REBUILT)):
            if other != own:
                rest = [place for place in others if place != data[other]]
                yield tuple(zip((*rest, p, q), two_lost(own, other, count), strict=True))

    def cells(self, number: int, start: int, end: int) -> Iterator[StripeCell]:
        """Yield what a range of the device has that lies in stripe ``number``, in order."""
        size = self.striping.chunk
        offset = self.stripes[number].start
        while start < end:
            row, within = divmod(start - offset, size)
            length = min(end - start, size - within)
            content = self.striping.identify_cell(Cell(number, row))
            if isinstance(content, str):
                yield StripeCell(start, length, self.start + row * self.row_length, content)
            else:
                yield StripeCell(start, length, self.start + content * size + within)
            start += length


class StripeRun(NamedTuple):
    """A part of a device in stripe ``number`` of ``chunk``, or in no chunk if that is None."""

    start: int
    end: int
    chunk: Chunk | None
    number: int = 0


class ChunkMap:
    """The chunks of a filesystem; ``faults`` are the reasons why it may be incomplete."""

    def __init__(self, sector_size: int) -> None:
        self.faults: list[str] = []
        self._sector = sector_size
        self._chunks: dict[int, Chunk] = {}
        self._starts: list[int] = []
        self._runs: dict[int, list[StripeRun]] = {}
        self._run_starts: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks.values())

    @property
    def end(self) -> int:
        """The logical address past the last chunk."""
        return max((chunk.end for chunk in self), default=0)

    @property
    def devices(self) -> list[int]:
        """The numbers of the devices that have chunks, in order."""
        return sorted(self._runs)

    def add(self, logical: int, item: ChunkItem | None) -> None:
        """Add a chunk; what cannot be followed becomes one of the faults."""
        what = f"chunk at logical address {logical}"
        if item is None:
            self.faults.append(f"{what}: damaged item")
            return
        stripes = tuple(Place(*stripe) for stripe in item.stripes)
        if (
            not item.length
            or (logical | item.length) % self._sector
            or logical + item.length > _TOP
            or item.stripe_length != STRIPE
            or not item.type & 7
        ):
            self.faults.append(f"{what}: invalid length, place or type")
            return
        if fault := _fault(item):
            self.faults.append(f"{what}: {fault}")
            return
        chunk = Chunk(logical, item.length, item.type, stripes)
        if any(
            place.start % self._sector or place.start + chunk.stripe_length > _TOP
            for place in stripes
        ):
            self.faults.append(f"{what}: invalid place on the device")
            return
        self._chunks[logical] = chunk

    def finish(self) -> None:
        """Sort what was added; chunks that overlap others are left out."""
        chunks: list[Chunk] = []
        for start in sorted(self._chunks):
            chunk = self._chunks[start]
            if chunks and chunks[-1].end > start:
                self.faults.append(f"chunks overlap at logical address {start}")
                continue
            chunks.append(chunk)
        runs: dict[int, list[StripeRun]] = defaultdict(list)
        for chunk in chunks:
            for number, (device, place) in enumerate(chunk.stripes):
                runs[device].append(StripeRun(place, place + chunk.stripe_length, chunk, number))
        self._chunks = {chunk.start: chunk for chunk in chunks}
        self._starts = list(self._chunks)
        self._runs = {device: self._in_order(device, some) for device, some in runs.items()}
        self._run_starts = {
            device: [one.start for one in some] for device, some in self._runs.items()
        }

    def _in_order(self, device: int, runs: Sequence[StripeRun]) -> list[StripeRun]:
        kept: list[StripeRun] = []
        for run in sorted(runs, key=lambda one: one.start):
            if kept and kept[-1].end > run.start:
                self.faults.append(f"chunks overlap at byte {run.start} of device {device}")
                continue
            kept.append(run)
        return kept

    def find(self, logical: int) -> Chunk | None:
        """Return the chunk of a logical address."""
        index = bisect_right(self._starts, logical) - 1
        if index < 0:
            return None
        chunk = self._chunks[self._starts[index]]
        return chunk if logical < chunk.end else None

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, Chunk | None]]:
        """Cut logical addresses into chunks and what lies between them; yield bounds and chunk."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        at = start
        for first in self._starts[index:]:
            chunk = self._chunks[first]
            low, high = max(at, first), min(end, chunk.end)
            if first >= end:
                break
            if low >= high:
                continue
            if at < low:
                yield at, low, None
            yield low, high, chunk
            at = high
        if at < end:
            yield at, end, None

    def runs(self, device: int, start: int, end: int) -> Iterator[StripeRun]:
        """Cut a range of a device into stripes and what lies between them, in order."""
        runs = self._runs.get(device, [])
        index = max(bisect_right(self._run_starts.get(device, []), start) - 1, 0)
        at = start
        while at < end:
            while index < len(runs) and runs[index].end <= at:
                index += 1
            run = runs[index] if index < len(runs) else None
            if run is None or run.start >= end:
                yield StripeRun(at, end, None)
                return
            if at < run.start:
                yield StripeRun(at, run.start, None)
            low, high = max(at, run.start), min(end, run.end)
            yield StripeRun(low, high, run.chunk, run.number)
            at = high


def _fault(item: ChunkItem) -> str:  # noqa: PLR0911 - faults
    """Return why the stripes of a chunk are not followed, "" if they are."""
    profile = _PROFILES.get(item.type & PROFILES)
    count = len(item.stripes)
    if profile is None:
        return f"unknown profile {item.type & PROFILES:#x}"
    if not profile.fewest <= count <= profile.most:
        return f"profile {profile.name} with {count} stripes"
    if profile.name == "DUP" and len({device for device, _ in item.stripes}) > 1:
        return "profile DUP on several devices"
    if not profile.is_striped:
        return ""
    if profile.copies > 1 and (item.sub_stripes != _SUB_STRIPES or count % _SUB_STRIPES):
        return f"profile {profile.name} with {count} stripes, {item.sub_stripes} of which are equal"
    if item.length * profile.copies % ((count - profile.parities) * STRIPE):
        return "its length is not that of whole stripes"
    return ""


@lru_cache(1 << 10)
def _make_striping(kind: int, count: int, length: int) -> Striping:
    """Return the arithmetic of a chunk that has no `_fault`."""
    profile = _PROFILES[kind]
    if not profile.is_striped:
        return Raid1(count, length)
    data = count - profile.parities
    if profile.parities:
        # Row 0 begins with data on the first stripe; each row begins one stripe further.
        return Raid5(STRIPE, count, RIGHT_SYMMETRIC, profile.parities, turn=data)
    rows = length * profile.copies // (data * STRIPE)
    if profile.copies > 1:
        return Raid10(STRIPE, count, _TWO_NEAR, rows)
    return Raid0(STRIPE, [rows] * count)
