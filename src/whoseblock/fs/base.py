"""The rows of every answer, and what identifies a file.

The rows are those of the ``lookup --json`` contract: their attributes are its fields, and
`msgspec` encodes them to it as they are.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, NamedTuple, overload

from msgspec import UNSET, Struct, UnsetType

__all__ = [
    "MAX_NOTES",
    "MAX_OWNERS",
    "Answer",
    "Copy",
    "FileId",
    "FileOwner",
    "Free",
    "InlineFile",
    "LayerLocation",
    "Mapping",
    "MetadataOwner",
    "OpenFile",
    "Outside",
    "Owner",
    "Paths",
    "Process",
    "Progress",
    "Staging",
    "Unknown",
    "Unreferenced",
    "distinct",
    "no_progress",
    "remarks_in",
]

#: Told ``(what is being done, how much is done, how much there is or None)``, many times.
Progress = Callable[[str, int, int | None], None]


def no_progress(_what: str, _done: int, _total: int | None) -> None:
    """Ignore progress."""


#: The usual limit of the owners that are listed of one extent.
MAX_OWNERS: Final = 1 << 18
#: A badly damaged filesystem has thousands of notes; more than this many are only counted.
MAX_NOTES: Final = 20
_AND, _MORE = "and ", " more notes of this kind"


class FileId(NamedTuple):
    """The identity of a file in one filesystem; ``subvolume`` is 0 where there are none."""

    subvolume: int
    inode: int


class LayerLocation(Struct, frozen=True):
    """A place in one layer of the stack: byte ``start`` of ``layer``."""

    layer: str
    start: int


class _Placed(Struct, frozen=True, kw_only=True):
    """The place of a row or an answer in each layer, from the top down."""

    via: tuple[LayerLocation, ...] | UnsetType = UNSET


class Copy(Struct, frozen=True):
    """Another place of the same bytes: byte ``start`` of ``layer``."""

    layer: str
    start: int


class _Copied(_Placed, frozen=True, kw_only=True):
    copies: tuple[Copy, ...] | UnsetType = UNSET
    logical: int | UnsetType = UNSET


class Owner(_Copied, frozen=True, tag_field="kind", tag="owner"):
    """One row of an answer: ``length`` bytes from ``start`` that one owner has.

    ``via`` is where the row begins in each layer, from the one that was asked about down to the
    filesystem's; it is left out if the filesystem itself was asked.  ``copies`` are the other
    places of the same bytes on a filesystem with redundancy.  ``logical`` is the address of the
    first byte in the filesystem, if that has addresses of its own.
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
    """A file owns the bytes: its data, its attributes, or the map of either.

    ``file_offset`` is in bytes within the fork, None for a block of the extent map.  ``paths`` is
    absent if the caller did not ask for it.  ``detail`` names a file of the filesystem itself.

    On a mounted filesystem, ``generation`` distinguishes the inode from others with its number.
    ``mounted_at`` are the paths at which the file can be opened now.  ``processes`` are those that
    have this part of it mapped, or the file open.

    ``subvolume`` and ``subvolume_path`` are present only on filesystems with subvolumes.
    ``encoding`` names the algorithm of compressed data: any lost byte then loses ``file_length``
    bytes from ``file_offset``.  Without it, ``length`` bytes from ``file_offset`` are lost.
    ``encrypted_name`` is true if ``paths`` have the kernel's names for an encrypted directory
    whose key is missing.
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
    subvolume: int | UnsetType = UNSET
    subvolume_path: str | UnsetType = UNSET
    file_length: int | UnsetType = UNSET
    encoding: str | UnsetType = UNSET
    encrypted_name: bool | UnsetType = UNSET

    @property
    def file(self) -> FileId:
        """The identity of the file in its filesystem."""
        return FileId(self.subvolume if isinstance(self.subvolume, int) else 0, self.inode)

    @property
    def lost(self) -> tuple[int, int] | None:
        """The bytes of the fork that are lost with this row: offset and length; None for a map."""
        if self.file_offset is None:
            return None
        length = self.file_length if isinstance(self.file_length, int) else self.length
        return self.file_offset, length


class InlineFile(Struct, frozen=True):
    """A file whose data is inside a metadata block."""

    subvolume: int
    inode: int
    paths: tuple[str, ...] | UnsetType = UNSET


class MetadataOwner(Owner, frozen=True, tag="metadata"):
    """The filesystem itself owns the bytes; ``what`` is the kernel's GETFSMAP class.

    ``inodes`` are the first and the last inode in the block, if it holds inodes.  ``trees`` are
    the ids of all trees that share the block, and ``inline_files`` the files whose data is in it.
    """

    what: str
    inodes: tuple[int, int] | UnsetType = UNSET
    detail: str | UnsetType = UNSET
    trees: tuple[int, ...] | UnsetType = UNSET
    inline_files: tuple[InlineFile, ...] | UnsetType = UNSET


class Free(Owner, frozen=True, tag="free"):
    """The bytes are free, by the records of the filesystem itself."""


class Staging(Owner, frozen=True, tag="staging"):
    """The bytes are reserved for a copy-on-write that has not happened."""


class Unreferenced(Owner, frozen=True, tag="unreferenced"):
    """The bytes are allocated as part of an extent, but no file refers to them.

    No data is lost with them, and nothing may be written there.  ``holders`` are the files that
    refer to other bytes of the extent.
    """

    holders: tuple[FileId, ...] = ()


class Outside(Owner, frozen=True, tag="outside"):
    """The bytes are on the device but not in the filesystem."""

    what: str


class Unknown(Owner, frozen=True, tag="unknown"):
    """The owner is unknown; a note of the answer gives the reason."""


class Answer(_Placed, frozen=True):
    """Everything known about one range; a sequence of its rows.

    The rows are ordered by start, subvolume, inode and file offset, and together cover the range.
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
    surrogates, as with `os.fsdecode`.  ``mounted_at`` and ``encrypted_name`` are as in `FileOwner`.
    """

    paths: tuple[str, ...] = ()
    complete: bool = True
    notes: tuple[str, ...] = ()
    unlinked: bool = False
    detail: str = ""
    mounted_at: tuple[str, ...] | UnsetType = UNSET
    encrypted_name: bool = False

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


def distinct(notes: Iterable[str]) -> tuple[str, ...]:
    """Drop the notes that repeat others, and those past `MAX_NOTES`, counting the latter.

    Notes that were cut off before stay counted: a second time has no effect.
    """
    once: dict[str, None] = {}
    omitted = 0
    for note in notes:
        number = note.removeprefix(_AND).removesuffix(_MORE)
        if number.isdecimal() and note == f"{_AND}{number}{_MORE}":
            omitted += int(number)
        else:
            once[note] = None
    omitted += max(len(once) - MAX_NOTES, 0)
    if not omitted:
        return tuple(once)
    return (*tuple(once)[:MAX_NOTES], f"{_AND}{omitted}{_MORE}")


def remarks_in(
    notes: Iterable[str], missing: Collection[str], remarks: Collection[str]
) -> tuple[str, ...] | UnsetType:
    """Return what `Answer.remarks` is: those of ``notes`` that are only remarks."""
    if not missing:
        return UNSET
    return tuple(note for note in notes if note in remarks and note not in missing) or UNSET
