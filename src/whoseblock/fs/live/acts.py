"""What repairs ask of a mounted filesystem."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator

from whoseblock.fs.arguments import checked_ranges
from whoseblock.fs.base import FileId, Owner
from whoseblock.fs.driver import Allocation, Capability, ExchangeSample, FileFacts, MountedVolume
from whoseblock.fs.live import exchange, kernel
from whoseblock.fs.live.advice import repair_advice
from whoseblock.fs.live.format import (
    FS_XFLAG_APPEND,
    FS_XFLAG_IMMUTABLE,
    XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE,
    XFS_FSOP_GEOM_FLAGS_REFLINK,
    Geometry,
    InodeFacts,
)
from whoseblock.fs.live.view import View
from whoseblock.fs.mounted.fiemap import maps_run
from whoseblock.ranges import ByteRange

__all__ = ["ActsOnMounted"]


class ActsOnMounted(MountedVolume):
    """The part of a mounted filesystem that only repairs use."""

    view: View
    geometry: Geometry | None
    _device: int

    @abstractmethod
    def inode(self, number: int) -> InodeFacts | None:
        """Return the facts of an inode, None if there is none."""

    @property
    def devices(self) -> frozenset[int]:
        """Every ``st_dev`` under which its files appear."""
        return frozenset({self.view.device})

    @property
    def mount_point(self) -> str:
        """The mount point at which it was opened."""
        return self.view.point

    @property
    def root_fd(self) -> int | None:
        """A descriptor of its root directory, None if unreachable."""
        return self.view.top

    def fileno(self) -> int:
        """Return a descriptor on it, for syncfs(2) and FIFREEZE."""
        return self.view.fd

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What repairs may rely on."""
        if self.geometry is None:
            return frozenset()
        found = {
            Capability.ZERO_FREE,
            Capability.FREEZE,
            Capability.OVERWRITE,
            Capability.QUARANTINE,
        }
        if self.geometry.flags & XFS_FSOP_GEOM_FLAGS_REFLINK:
            found.add(Capability.REFLINK)
        if self.geometry.flags & XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE:
            found.add(Capability.EXCHANGE_RANGE)
        return frozenset(found)

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one that is gone is left out."""
        found = {}
        for file in files:
            if (facts := self.inode(file.inode)) is not None:
                found[file] = FileFacts(
                    facts.mode,
                    facts.size,
                    facts.links,
                    facts.generation,
                    immutable=bool(facts.xflags & FS_XFLAG_IMMUTABLE),
                    append_only=bool(facts.xflags & FS_XFLAG_APPEND),
                )
        return found

    def open_file(self, file: FileId, generation: int, flags: int) -> int:
        """Open a file by its handle; raises OSError, FileNotFoundError if it is gone."""
        return kernel.open_inode(self.view.fd, file.inode, generation, flags)

    def still_maps(self, fd: int, file_offset: int, run: ByteRange) -> bool:
        """Return whether an open file still has all of ``run`` as written data at an offset."""
        return maps_run(fd, file_offset, run)

    def sample_file(self, fd: int) -> ExchangeSample | None:
        """Sample the state of an open file for `exchange_range`; None if that is unsupported."""
        return exchange.sample_file(fd)

    def exchange_range(
        self, fd: int, file_offset: int, length: int, other: int, sample: ExchangeSample
    ) -> bool:
        """Exchange blocks of an open file with those that ``other`` has from its byte 0 on."""
        return exchange.exchange_range(fd, file_offset, length, other, sample)

    def allocation(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Allocation]:
        """Yield which parts of the ranges the kernel reports as free; raises OSError."""
        for start, length in checked_ranges(ranges, self.view.point, self.device_size):
            at, end = start, start + length
            last = min(end, self.size)
            records = kernel.fsmap(self.view.fd, self._device, start, last) if start < last else ()
            for record in records:
                low = max(at, record.physical)
                high = min(end, record.physical + record.length)
                if low < high and record.is_free:
                    if at < low:
                        yield Allocation(at, low - at, is_free=False)
                    yield Allocation(low, high - low, is_free=True)
                    at = high
            if at < end:
                yield Allocation(at, end - at, is_free=False)

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row) if self.geometry else super().repair_advice(row)
