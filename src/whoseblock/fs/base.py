"""What every filesystem answers, and in which words.

The rows are those of the ``lookup --json`` contract: their attributes are its fields, and
`msgspec` encodes them to it as they are.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, overload, runtime_checkable

from msgspec import UNSET, Struct, UnsetType

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from whoseblock.fs.arrays import OwnerArrays
    from whoseblock.fs.stream import LeadingRows

__all__ = [
    "MAX_NOTES",
    "AddressSpace",
    "Answer",
    "FileOwner",
    "Filesystem",
    "Free",
    "Mapping",
    "MetadataOwner",
    "Mounted",
    "OpenFile",
    "Outside",
    "Owner",
    "Paths",
    "Process",
    "Progress",
    "Staging",
    "Unknown",
    "Via",
    "distinct",
    "no_progress",
    "remarks_in",
]

#: Told ``(what is being done, how much is done, how much there is or None)``, many times.
Progress = Callable[[str, int, int | None], None]


def no_progress(_what: str, _done: int, _total: int | None) -> None:
    """Tell nobody."""


#: A badly damaged filesystem has thousands of things to say; nobody reads more than this many.
MAX_NOTES: Final = 20


class Via(Struct, frozen=True):
    """A place in one layer of the stack: byte ``start`` of ``layer``."""

    layer: str
    start: int


class _Placed(Struct, frozen=True, kw_only=True):
    """What came through a stack of layers knows its way: the same place in each, downwards."""

    via: tuple[Via, ...] | UnsetType = UNSET


class Owner(_Placed, frozen=True, tag_field="kind", tag="owner"):
    """One row of an answer: ``length`` bytes from ``start`` that one owner has.

    ``via`` is where the row begins in each layer, from the one that was asked about down to the
    filesystem's; it is left out if the filesystem itself was asked.
    """

    start: int
    length: int

    @property
    def kind(self) -> str:
        """The ``kind`` of the contract."""
        return str(self.__struct_config__.tag)


class Mapping(Struct, frozen=True):
    """A part of a file in a process's memory: ``length`` bytes from byte ``file_offset``.

    ``address`` is where they begin in the address space of the process.  ``shared`` is MAP_SHARED;
    a process with a private mapping that it wrote to may have a copy of its own.
    """

    address: int
    length: int
    file_offset: int
    shared: bool
    readable: bool
    writable: bool
    executable: bool


class OpenFile(Struct, frozen=True):
    """A file descriptor: its number, its flags as in open(2), and its offset in bytes."""

    fd: int
    flags: tuple[str, ...]
    offset: int


class Process(Struct, frozen=True):
    """A process that uses a file.

    ``pid`` is its number as we see it, and together with ``start_time``, in clock ticks since the
    machine booted, names it for ever; ``started`` is the same moment as UTC, ISO 8601.
    ``namespace_pid`` is its number in its own pid namespace if that differs.  ``command`` is the
    name that the kernel has for it.  ``cgroup`` is the path of its control group, and ``unit`` the
    unit of systemd that the path names.
    """

    pid: int
    start_time: int
    started: str
    command: str
    uid: int
    mappings: tuple[Mapping, ...] = ()
    open: tuple[OpenFile, ...] = ()
    namespace_pid: int | UnsetType = UNSET
    cgroup: str | UnsetType = UNSET
    unit: str | UnsetType = UNSET


class FileOwner(Owner, frozen=True, tag="file"):
    """A file has the bytes: its data, or its attributes, or the map of either.

    ``file_offset`` is in bytes within the fork, None for a block of the extent map.  ``paths`` is
    left out if nobody asked for it.  ``detail`` names a file that belongs to the filesystem itself.
    Of a mounted filesystem, ``generation`` tells the inode from others that had its number,
    ``mounted_at`` are the places where one can open the file now, and ``processes`` those who have
    this part of it mapped, or the file open.
    """

    inode: int
    fork: str
    what: str
    file_offset: int | None
    unwritten: bool
    shared: bool
    paths: tuple[str, ...] | UnsetType = UNSET
    unlinked: bool | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    generation: int | UnsetType = UNSET
    mounted_at: tuple[str, ...] | UnsetType = UNSET
    processes: tuple[Process, ...] | UnsetType = UNSET


class MetadataOwner(Owner, frozen=True, tag="metadata"):
    """The filesystem has the bytes; ``what`` is the kernel's GETFSMAP class.

    ``inodes`` are the first and the last inode that lie there, if inodes do.
    """

    what: str
    inodes: tuple[int, int] | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class Free(Owner, frozen=True, tag="free"):
    """Nobody has the bytes, and the filesystem says so itself."""


class Staging(Owner, frozen=True, tag="staging"):
    """The bytes are reserved for a copy-on-write that has not happened."""


class Outside(Owner, frozen=True, tag="outside"):
    """The bytes are on the device but not in the filesystem."""

    what: str


class Unknown(Owner, frozen=True, tag="unknown"):
    """Nobody can say; a note on the answer says why."""


class Answer(_Placed, frozen=True):
    """Everything known about one range; a sequence of its rows.

    The rows are ordered by start, inode and file offset, and together cover the range.
    ``complete`` is false if an owner, a path or a certainty may be missing, and ``notes`` say
    what.  ``via`` is the way of the first byte, as far down as it goes; every row has its own.
    ``origin`` says where the failure was read, if it was read from somewhere.  ``verified`` is
    there if the owners were asked for again in the end: whether they were still the same.
    ``remarks`` are those of ``notes`` that have nothing to do with ``complete`` being false; it is
    left out if there are none, and where ``complete`` is true all notes are remarks.
    """

    start: int
    length: int
    complete: bool
    notes: tuple[str, ...]
    owners: tuple[Owner, ...]
    origin: str | UnsetType = UNSET
    verified: bool | UnsetType = UNSET
    remarks: tuple[str, ...] | UnsetType = UNSET

    def __len__(self) -> int:
        return len(self.owners)

    def __iter__(self) -> Iterator[Owner]:
        return iter(self.owners)

    def __getitem__(self, index: int) -> Owner:
        return self.owners[index]


class Paths(Struct, frozen=True):
    """Every path of an inode, in byte order; a sequence of them.

    Each begins with ``/``, the root of the filesystem.  Bytes that are not UTF-8 are lone
    surrogates, as with `os.fsdecode`.  ``mounted_at`` is as in `FileOwner`.
    """

    paths: tuple[str, ...] = ()
    complete: bool = True
    notes: tuple[str, ...] = ()
    unlinked: bool = False
    detail: str = ""
    mounted_at: tuple[str, ...] | UnsetType = UNSET

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.paths[index]


class AddressSpace(Protocol):
    """A device of a filesystem, and who owns its bytes: the data, the log, the realtime device."""

    name: str
    device_size: int
    block_size: int
    progress: Progress

    def owners_many(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> Iterator[Answer]:
        """Answer many ``(start, length)`` together, in the order asked."""

    def owners_stream(
        self, ranges: Iterable[tuple[int, int]], *, paths: bool = True
    ) -> "Iterator[LeadingRows | Answer]":
        """Answer like `owners_many`, an answer with many rows in pieces; see `fs.stream`."""

    def close(self) -> None:
        """Let go of the device."""


@runtime_checkable
class Filesystem(AddressSpace, Protocol):
    """A filesystem that knows who owns its blocks.

    Ranges are bytes of the device that the filesystem is on.
    """

    size: int

    @property
    def identity(self) -> str:
        """What tells the filesystem from others, whatever its device is called; "" if nothing."""

    @property
    def reads(self) -> Counter[str]:
        """How many blocks of metadata were read from the medium, by kind."""

    def owners(self, start: int, length: int, *, paths: bool = True) -> Answer:
        """Say who owns ``length`` bytes from ``start``; raises `OutOfDeviceError`."""

    def owners_of(self, starts: "ArrayLike", lengths: "ArrayLike") -> "OwnerArrays":
        """Answer many ranges as NumPy columns, without paths."""

    def file_size(self, inode: int) -> int | None:
        """Give the size of a file in bytes, None if its inode cannot be read."""

    def paths(self, inode: int) -> Paths:
        """Give every path of ``inode``."""

    def paths_many(self, inodes: Iterable[int]) -> dict[int, Paths]:
        """Give every path of each of ``inodes``, searching once for all."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Mounted(Filesystem, Protocol):
    """A mounted filesystem, for which the kernel answers: others may use what it is asked about."""

    @property
    def device(self) -> int:
        """The number of its device, as `os.makedev` gives it."""


def distinct(notes: Iterable[str]) -> tuple[str, ...]:
    """Drop the notes that repeat others, and those past `MAX_NOTES`, counting the latter."""
    once = tuple(dict.fromkeys(notes))
    if len(once) <= MAX_NOTES:
        return once
    return (*once[:MAX_NOTES], f"and {len(once) - MAX_NOTES} more notes of this kind")


def remarks_in(
    notes: Iterable[str], missing: Collection[str], remarks: Collection[str]
) -> tuple[str, ...] | UnsetType:
    """Return what `Answer.remarks` is: those of ``notes`` that are only remarks."""
    if not missing:
        return UNSET
    return tuple(note for note in notes if note in remarks and note not in missing) or UNSET
