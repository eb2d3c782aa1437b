"""The items of trees; every parser returns None for an item that is not in its format."""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from whoseblock.fs.btrfs.format.keys import CHUNK_ITEM, Key

__all__ = [
    "BlockGroupItem",
    "ChunkItem",
    "DevExtent",
    "DeviceItem",
    "DirEntry",
    "FileExtent",
    "InodeItem",
    "Name",
    "RootItem",
    "free_runs",
    "parse_block_group",
    "parse_chunk",
    "parse_chunk_array",
    "parse_dev_extent",
    "parse_device",
    "parse_dir_entries",
    "parse_extref",
    "parse_file_extent",
    "parse_inode",
    "parse_inode_ref",
    "parse_root",
    "parse_root_ref",
    "unpack_device",
]

_CHUNK: Final = Struct("<QQQQIIIHH")
_STRIPE: Final = Struct("<QQ16s")
_DISK_KEY: Final = Struct("<QBQ")
_DEVICE: Final = Struct("<QQQIIIQQQIBB16s16s")
_DEV_EXTENT: Final = Struct("<QQQQ16s")
_BLOCK_GROUP: Final = Struct("<QQQ")
_INODE: Final = Struct("<QQQQQIIIIQQ")
_INODE_SIZE: Final = 160
_ROOT: Final = Struct("<QQQQQQQIQBQBB")
_INODE_REF: Final = Struct("<QH")
_EXTREF: Final = Struct("<QQH")
_ROOT_REF: Final = Struct("<QQH")
_DIR: Final = Struct("<QBQQHHB")
_FILE_EXTENT: Final = Struct("<QQBBHB")
_ON_DISK: Final = Struct("<QQQQ")

# Types of chunks.
DATA: Final = 1
SYSTEM: Final = 2
METADATA: Final = 4
PROFILES: Final = 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400

# Types of file extents.
INLINE: Final = 0
REGULAR: Final = 1
PREALLOCATED: Final = 2
ENCODINGS: Final = {0: "", 1: "zlib", 2: "lzo", 3: "zstd"}

NAME_MAX: Final = 255


class ChunkItem(NamedTuple):
    """A chunk: ``stripes`` are the device and the physical offset of each."""

    length: int
    stripe_length: int
    type: int
    sub_stripes: int
    stripes: tuple[tuple[int, int], ...]


class DevExtent(NamedTuple):
    """A part of a device that the chunk at logical address ``chunk`` has."""

    chunk: int
    length: int


class DeviceItem(NamedTuple):
    """A device: its number, how many bytes of it the filesystem has, and its own UUID."""

    device: int
    size: int
    uuid: bytes


class BlockGroupItem(NamedTuple):
    """The use of a chunk: ``used`` bytes have extents."""

    used: int
    type: int


class InodeItem(NamedTuple):
    """The facts of an inode."""

    generation: int
    size: int
    links: int
    mode: int
    flags: int


class RootItem(NamedTuple):
    """The root of a tree; ``refs`` is 0 while a subvolume is being deleted."""

    generation: int
    address: int
    level: int
    refs: int


class Name(NamedTuple):
    """A name in directory ``parent``; ``sequence`` is its place in the order of the directory."""

    parent: int
    sequence: int
    name: bytes


class DirEntry(NamedTuple):
    """An entry of a directory: ``target`` is the key of an inode, or of a root."""

    target: Key
    name: bytes


class FileExtent(NamedTuple):
    """A part of a file: ``length`` bytes from ``offset`` of the decompressed extent.

    ``address`` is 0 for a hole; an inline extent has its data in the leaf.
    """

    generation: int
    ram_bytes: int
    compression: int
    kind: int
    address: int = 0
    disk_length: int = 0
    offset: int = 0
    length: int = 0


def parse_chunk(raw: bytes) -> ChunkItem | None:
    """Parse a chunk item."""
    if len(raw) < _CHUNK.size:
        return None
    length, _, stripe_length, kind, _, _, _, count, sub = _CHUNK.unpack_from(raw)
    if not count or len(raw) != _CHUNK.size + count * _STRIPE.size:
        return None
    stripes = tuple(
        (device, offset) for device, offset, _ in _STRIPE.iter_unpack(raw[_CHUNK.size :])
    )
    return ChunkItem(length, stripe_length, kind, sub, stripes)


def parse_chunk_array(raw: bytes) -> Iterator[tuple[int, ChunkItem] | None]:
    """Yield the logical address and the item of each chunk in a superblock; None if damaged."""
    at = 0
    while at < len(raw):
        head = at + _DISK_KEY.size
        if head + _CHUNK.size > len(raw):
            yield None
            return
        _, kind, logical = _DISK_KEY.unpack_from(raw, at)
        count = _CHUNK.unpack_from(raw, head)[7]
        at = head + _CHUNK.size + count * _STRIPE.size
        chunk = parse_chunk(raw[head:at])
        if kind != CHUNK_ITEM or chunk is None:
            yield None
            return
        yield logical, chunk


def parse_dev_extent(raw: bytes) -> DevExtent | None:
    """Parse the item of an allocated part of a device."""
    if len(raw) != _DEV_EXTENT.size:
        return None
    _, _, chunk, length, _ = _DEV_EXTENT.unpack(raw)
    return DevExtent(chunk, length)


def parse_device(raw: bytes) -> DeviceItem | None:
    """Parse the item of a device, which is in the superblock, too."""
    return unpack_device(raw) if len(raw) == _DEVICE.size else None


def unpack_device(raw: bytes, offset: int = 0) -> DeviceItem:
    """Decode the item of a device at an offset."""
    device, size, *_, uuid, _ = _DEVICE.unpack_from(raw, offset)
    return DeviceItem(device, size, uuid)


def parse_block_group(raw: bytes) -> BlockGroupItem | None:
    """Parse the item of a block group."""
    if len(raw) != _BLOCK_GROUP.size:
        return None
    used, _, kind = _BLOCK_GROUP.unpack(raw)
    return BlockGroupItem(used, kind)


def parse_inode(raw: bytes) -> InodeItem | None:
    """Parse an inode."""
    if len(raw) != _INODE_SIZE:
        return None
    generation, _, size, _, _, links, _, _, mode, _, flags = _INODE.unpack_from(raw)
    return InodeItem(generation, size, links, mode, flags)


def parse_root(raw: bytes) -> RootItem | None:
    """Parse the root of a tree."""
    if len(raw) < _INODE_SIZE + _ROOT.size:
        return None
    generation, _, address, _, _, _, _, refs, *_, level = _ROOT.unpack_from(raw, _INODE_SIZE)
    return RootItem(generation, address, level, refs)


def _named(raw: bytes, at: int, length: int) -> bytes | None:
    name = raw[at : at + length]
    return name if 0 < length == len(name) <= NAME_MAX else None


def parse_inode_ref(raw: bytes, parent: int) -> list[Name] | None:
    """Parse the names that an inode has in one directory."""
    names: list[Name] = []
    at = 0
    while at + _INODE_REF.size <= len(raw):
        index, length = _INODE_REF.unpack_from(raw, at)
        at += _INODE_REF.size
        name = _named(raw, at, length)
        if name is None:
            return None
        names.append(Name(parent, index, name))
        at += length
    return names if names and at == len(raw) else None


def parse_extref(raw: bytes) -> list[Name] | None:
    """Parse names of an inode whose directories differ, but not the hash of their names."""
    names: list[Name] = []
    at = 0
    while at + _EXTREF.size <= len(raw):
        parent, index, length = _EXTREF.unpack_from(raw, at)
        at += _EXTREF.size
        name = _named(raw, at, length)
        if name is None:
            return None
        names.append(Name(parent, index, name))
        at += length
    return names if names and at == len(raw) else None


def parse_root_ref(raw: bytes) -> Name | None:
    """Parse the name of a subvolume; ``parent`` is the inode of its directory."""
    if len(raw) < _ROOT_REF.size:
        return None
    parent, sequence, length = _ROOT_REF.unpack_from(raw)
    name = _named(raw, _ROOT_REF.size, length)
    if name is None or _ROOT_REF.size + length != len(raw):
        return None
    return Name(parent, sequence, name)


def parse_dir_entries(raw: bytes) -> list[DirEntry] | None:
    """Parse the entries of one item of a directory."""
    entries: list[DirEntry] = []
    at = 0
    while at + _DIR.size <= len(raw):
        objectid, kind, offset, _, data, length, _ = _DIR.unpack_from(raw, at)
        at += _DIR.size
        name = _named(raw, at, length)
        if name is None:
            return None
        entries.append(DirEntry((objectid, kind, offset), name))
        at += length + data
    return entries if entries and at == len(raw) else None


def parse_file_extent(raw: bytes) -> FileExtent | None:
    """Parse a part of a file."""
    if len(raw) < _FILE_EXTENT.size:
        return None
    generation, ram_bytes, compression, encryption, encoding, kind = _FILE_EXTENT.unpack_from(raw)
    if compression not in ENCODINGS or encryption or encoding or kind > PREALLOCATED:
        return None
    if kind == INLINE:
        return FileExtent(generation, ram_bytes, compression, kind)
    if len(raw) != _FILE_EXTENT.size + _ON_DISK.size:
        return None
    return FileExtent(
        generation, ram_bytes, compression, kind, *_ON_DISK.unpack_from(raw, _FILE_EXTENT.size)
    )


def free_runs(raw: bytes, start: int, length: int, sector: int) -> list[tuple[int, int]] | None:
    """Return the first byte and the end of each free run of a bitmap of the free space tree."""
    count = length // sector
    if len(raw) != -(-count // 8):
        return None
    bits = format(int.from_bytes(raw, "little"), f"0{len(raw) * 8}b")[::-1][:count]
    runs: list[tuple[int, int]] = []
    at = bits.find("1")
    while at >= 0:
        end = bits.find("0", at)
        end = count if end < 0 else end
        runs.append((start + at * sector, start + end * sector))
        at = bits.find("1", end)
    return runs
