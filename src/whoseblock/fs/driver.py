"""The protocols that every filesystem implements: `Driver`, `Volume` and `MountedVolume`.

A driver is a package of its own below `whoseblock.fs`; `whoseblock.fs.registry` knows them all.
The classes of a driver inherit from these protocols, whose methods with a body are defaults.
"""

# ruff: noqa: ARG002 - the defaults of protocols leave their arguments alone

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self, runtime_checkable

from whoseblock.errors import UnsupportedError
from whoseblock.fs.arguments import check_inodes
from whoseblock.fs.base import MAX_OWNERS, Answer, FileId, Free, Owner, Paths, Progress
from whoseblock.media.base import Media
from whoseblock.media.mounts import Mount

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from whoseblock.fs.arrays import OwnerArrays
    from whoseblock.fs.stream import AnswerColumns, LeadingRows
    from whoseblock.ranges import ByteRange, RangeList

__all__ = [
    "AddressSpace",
    "Allocation",
    "Capability",
    "CompanionContent",
    "DeviceSegment",
    "Driver",
    "ExchangeSample",
    "FileFacts",
    "IndexLeaf",
    "IndexSize",
    "MountedDevice",
    "MountedVolume",
    "Probe",
    "ReverseMap",
    "Volume",
]

#: How owners are found: in an index on the disk, by reading all inodes, or not at all.
ReverseMap = Literal["index", "scan", "none"]


class Capability(StrEnum):
    """A feature of a volume that repairs need; callers ask for these, never for types."""

    #: `Volume.owners` is certain enough to zero what it calls free or never written.
    ZERO_FREE = "zero-free"
    #: FIFREEZE stops every allocation, and `owners` and `allocation` answer meanwhile.
    FREEZE = "freeze"
    #: `MountedVolume.capture` can give free blocks to a file.
    CAPTURE = "capture"
    #: Files can share blocks (FICLONERANGE).
    REFLINK = "reflink"
    #: `MountedVolume.exchange_range` exchanges blocks of two files, and fails if one changed.
    EXCHANGE_RANGE = "exchange-range"
    #: Blocks of two files can be exchanged without a check for changes.
    MOVE_EXTENT = "move-extent"
    #: A write in place through a file with one owner reaches the same blocks.
    OVERWRITE = "overwrite"
    #: A file in a folder of the root keeps the blocks that it has, until it is removed.
    QUARANTINE = "quarantine"


class FileFacts(NamedTuple):
    """The state of an inode: ``size`` is in bytes, ``generation`` differs after reuse."""

    mode: int
    size: int
    links: int
    generation: int
    immutable: bool = False
    append_only: bool = False


class Allocation(NamedTuple):
    """``length`` bytes from ``start``; ``is_free`` only where that is certain."""

    start: int
    length: int
    is_free: bool


class IndexSize(NamedTuple):
    """The size of a reverse map on the disk, in bytes; ``levels`` are those of its highest tree.

    ``groups`` has, for each of its trees, the blocks of the device that may need a record in it.
    """

    size: int
    levels: int
    groups: tuple[int, ...]


class IndexLeaf(NamedTuple):
    """A leaf of a reverse map: its block begins at byte ``block`` of the device.

    It has ``records`` records, which are all that the index has of ``length`` bytes from ``start``.
    """

    block: int
    start: int
    length: int
    records: int


class DeviceSegment(NamedTuple):
    """``length`` bytes from ``start`` of a device that have addresses of the filesystem.

    ``what`` is their use, and ``others`` are the names of the devices that share it.
    """

    start: int
    length: int
    what: str
    others: tuple[str, ...]


class CompanionContent(NamedTuple):
    """The content of a companion: its role, and a noun phrase that names it."""

    role: str
    what: str


class Probe(NamedTuple):
    """The identity of the filesystem that a device belongs to, read from the device alone.

    ``device`` is the number of the device among the ``devices`` of the filesystem.
    """

    name: str
    uuid: str
    device: int = 1
    devices: int = 1


@runtime_checkable
class AddressSpace(Protocol):
    """A device of a filesystem, and the owners of its bytes: a volume, or a companion of one."""

    #: The kind of the filesystem, as in mount(8).
    name: str
    device_size: int
    block_size: int
    progress: Progress
    #: Whether owners and names may be looked for in all inodes where there is no index.
    scans: bool = True
    #: Whether all inodes may be read, too, where an index is damaged.
    rescans: bool = False
    #: They may be read in any case if they, with their maps, take at most so many bytes.
    rescan_limit: int = 0
    #: At most so many owners of one extent are listed, where snapshots may multiply them.
    max_owners: int = MAX_OWNERS

    def owners_many(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[Answer]:
        """Answer many ``(start, length)`` together, in the order asked."""
        from whoseblock.fs.stream import join_rows

        return join_rows(self.owners_stream(ranges, paths=paths))

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> "Iterator[LeadingRows | Answer]":
        """Answer like `owners_many`, an answer with many rows in pieces; see `fs.stream`."""
        ...

    def columns_stream(
        self, ranges: "RangeList"
    ) -> "Iterator[LeadingRows | Answer | AnswerColumns]":
        """Answer like `owners_stream`, without paths, as columns where the filesystem has them."""
        return self.owners_stream(ranges, paths=False)

    def close(self) -> None:
        """Close the device."""
        ...


@runtime_checkable
class Volume(AddressSpace, Protocol):
    """A filesystem; ranges are bytes of the device on which it was opened."""

    size: int

    @property
    def identity(self) -> str:
        """The identity of the filesystem, whatever its device is called; never empty."""
        ...

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found."""
        ...

    def logical_addresses(self) -> AddressSpace:
        """Return the space of the filesystem's own addresses, which is closed with the volume.

        Raises `UnsupportedError` for a filesystem whose addresses are those of its device.
        """
        raise UnsupportedError(f"{self.name} has no logical addresses: ask about its device")

    def locate_in_file(self, file: FileId, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield start and length of each range of `logical_addresses` that has bytes of a file.

        Raises `BlockError`, or `UnsupportedError` for a filesystem without such addresses.
        """
        raise UnsupportedError(f"{self.name} has no logical addresses: ask about its device")

    def device_segments(self) -> "Iterable[DeviceSegment]":
        """Yield how the device is divided, if its bytes have addresses in the filesystem."""
        return ()

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities that repairs may rely on, in its present state; none by default."""
        return frozenset()

    @property
    def unused_companions(self) -> Mapping[str, str]:
        """The roles of companions that this filesystem does not have, each with the reason."""
        return {}

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete, such as a log with changes to replay."""
        return ()

    @property
    def reads(self) -> Counter[str]:
        """The number of metadata blocks read, or of questions to the kernel, by kind."""
        ...

    def owners(self, start: int, length: int, *, paths: bool = True) -> Answer:
        """Return the owners of ``length`` bytes from ``start``; raises `OutOfDeviceError`."""
        (answer,) = self.owners_many([(start, length)], paths=paths)
        return answer

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> "OwnerArrays":
        """Answer many ranges as NumPy columns, without paths."""
        raise UnsupportedError(f"{self.name} has no bulk answers as arrays")

    def allocation(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Allocation]:
        """Yield which parts of the ranges are free, in order; all else counts as allocated."""
        for answer in self.owners_many(ranges, paths=False):
            yield from _allocation_of(answer)

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        """Return the facts of files; one whose inode is gone or unreadable is left out."""
        ...

    def paths_of(self, files: Iterable[FileId]) -> dict[FileId, Paths]:
        """Return every path of each file, in one search for all."""
        ...

    def file_size(self, inode: int, subvolume: int = 0) -> int | None:
        """Return the size of a file in bytes, None if its inode cannot be read."""
        (inode,) = check_inodes((inode,))
        file = FileId(subvolume, inode)
        facts = self.files((file,)).get(file)
        return None if facts is None else facts.size

    def paths(self, inode: int, subvolume: int = 0) -> Paths:
        """Return every path of a file, and what may be missing."""
        (inode,) = check_inodes((inode,))
        file = FileId(subvolume, inode)
        return self.paths_of((file,))[file]

    def paths_many(self, inodes: Iterable[int]) -> dict[int, Paths]:
        """Return every path of each of ``inodes`` of subvolume 0, in one search for all."""
        found = self.paths_of(FileId(0, inode) for inode in check_inodes(inodes))
        return {file.inode: paths for file, paths in found.items()}

    def index_size(self) -> IndexSize:
        """Return the size of the reverse map; raises `UnsupportedError` if there is no index."""
        raise UnsupportedError(f"{self.name} has no reverse map on the disk")

    def index_leaves(self) -> Iterator[IndexLeaf]:
        """Yield the leaves of the reverse map; raises `UnsupportedError` if there is no index."""
        raise UnsupportedError(f"{self.name} has no reverse map on the disk")

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return (
            f"unmount it, and run the check that {self.name} has (fsck.{self.name}), on a copy"
            " first if more may fail"
        )

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class ExchangeSample(NamedTuple):
    """The state of a file when it was sampled, in the form of its driver."""

    state: bytes


@runtime_checkable
class MountedVolume(Volume, Protocol):
    """A mounted filesystem, for which the kernel answers."""

    @property
    def devices(self) -> frozenset[int]:
        """Every ``st_dev`` under which its files appear, as `os.makedev` returns them."""
        ...

    def subvolume_device(self, subvolume: int) -> int | None:
        """Return the ``st_dev`` of the files of a subvolume, None if all files have the same.

        Lists of mounts and of mappings have that of the filesystem for them.
        """
        return None

    @property
    def mount_point(self) -> str:
        """The mount point at which it was opened."""
        ...

    @property
    def root_fd(self) -> int | None:
        """A descriptor of its root directory, on the mount of `fileno`; None if unreachable."""
        ...

    @property
    def is_read_only(self) -> bool:
        """Whether the filesystem, not only one of its mounts, is read-only at this moment."""
        return False

    @property
    def unreplayed_log(self) -> str:
        """The reason why the kernel does not know changes that are in the log, "" if it does.

        It is also one of the `doubts`.
        """
        return ""

    def fileno(self) -> int:
        """Return a descriptor on it, for syncfs(2) and FIFREEZE."""
        ...

    def file_of(self, fd: int) -> FileId:
        """Return the identity of an open file that is on it."""
        return FileId(0, os.fstat(fd).st_ino)

    def open_file(self, file: FileId, generation: int, flags: int) -> int:
        """Open a file by its identity; raises OSError, FileNotFoundError if it is gone.

        Neither reads nor writes through the descriptor change the times of the file.  Raises
        `PrivilegeError` without the right to open files by handle, and `UnsupportedError` unless
        the driver can open files so.
        """
        raise UnsupportedError(f"files of {self.name} cannot be opened by their inode number")

    def data_companion(self, fd: int) -> str:
        """Return the role of the companion that has the data of an open file, "" for no other.

        Raises OSError.
        """
        return ""

    def still_maps(self, fd: int, file_offset: int, run: "ByteRange") -> bool:
        """Return whether an open file still has all of ``run`` as written data at an offset.

        ``run`` is in bytes of the device.  Only this file's mapping is read.  False if
        the kernel does not report places on the device.
        """
        return False

    def sample_file(self, fd: int) -> ExchangeSample | None:
        """Sample the state of an open file for `exchange_range`; None if that is unsupported."""
        return None

    def exchange_range(
        self, fd: int, file_offset: int, length: int, other: int, sample: ExchangeSample
    ) -> bool:
        """Exchange blocks of an open file with those that ``other`` has from its byte 0 on.

        The exchange is atomic, and durable.  Returns False if the filesystem does not support it.
        Raises OSError, with EBUSY if the file has changed since the sample.
        """
        return False

    def capture(self, run: "ByteRange", work: int) -> int | None:
        """Return the descriptor of an unlinked file that has free blocks at its byte 0.

        ``run`` is whole blocks of the device.  ``work`` is a descriptor of a directory of the
        caller's own, in which others are made and removed.  Returns None if the blocks are not
        free, or if the filesystem does not allocate them for the file.  Raises OSError.
        """
        return None


class MountedDevice(NamedTuple):
    """A device of a mounted filesystem: its number, and its size in bytes.

    It may be the number of the filesystem itself, if that is on several devices.
    """

    number: int
    size: int


class Driver(Protocol):
    """All that the program knows of one kind of filesystem.

    What has to be known before its module is imported stands in its
    `whoseblock.fs.registry.Registration`.
    """

    name: str

    def probe(self, media: Media) -> Probe | None:
        """Identify the filesystem that begins where the medium does; None if there is none.

        Searches nowhere else: on a disk with partitions it would find one of theirs.
        """
        ...

    def open(
        self,
        members: Sequence[Media],
        companions: Mapping[str, Media],
        doubts: Iterable[str] = (),
    ) -> Volume:
        """Open the filesystem on its devices, which are closed with it.

        Ranges are of the first member.  Every answer is incomplete if there are ``doubts``.
        Raises `NotAFilesystemError` or `UnsupportedError`; nothing is closed then.
        """
        ...

    def open_mounted(
        self, mounts: Sequence[Mount], process: int | None, device: MountedDevice
    ) -> MountedVolume | None:
        """Open a mounted filesystem for the kernel to answer.

        ``mounts`` are its mounts, in the mount namespace of ``process`` if that is not ours.
        ``device`` was asked about.
        Returns None if the kernel answers only what it does for every kind of filesystem.
        Raises `PrivilegeError`, `UnsupportedError`, `TargetError`, or `BlockError` if the kernel
        does not answer.
        """
        return None

    def open_companion(self, role: str, media: Media, data: Media) -> AddressSpace:
        """Open the companion on ``media``, which is closed with it.

        ``data`` has the filesystem, and is read only meanwhile.  Raises `UnsupportedError` if the
        filesystem has no companion of that role; nothing is closed then.
        """
        raise UnsupportedError(f"{self.name} has no {role} device")

    def identify_companion(self, media: Media) -> CompanionContent | None:
        """Return which companion a medium without a filesystem is, None if it is none."""
        return None


def _allocation_of(answer: Answer) -> Iterator[Allocation]:
    """Cut an answer into free and allocated parts; rows may overlap only where none is free."""
    at, end = answer.start, answer.start + answer.length
    for row in answer:
        if not (answer.complete and isinstance(row, Free)):
            continue
        if at < row.start:
            yield Allocation(at, row.start - at, is_free=False)
        yield Allocation(row.start, row.length, is_free=True)
        at = row.start + row.length
    if at < end:
        yield Allocation(at, end - at, is_free=False)
