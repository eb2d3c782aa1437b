"""The superblock (``struct btrfs_super_block``)."""

from struct import Struct
from typing import Final, NamedTuple
from uuid import UUID

from whoseblock.fs.btrfs.format.checksum import CHECKSUMS, checksum_matches
from whoseblock.fs.btrfs.format.items import DeviceItem, unpack_device

__all__ = [
    "COPIES",
    "MAGIC",
    "MAGIC_OFFSET",
    "STRIPE",
    "SUPERBLOCK_SIZE",
    "Superblock",
    "parse_superblock",
    "superblock_fault",
    "unsupported_features",
]

MAGIC: Final = b"_BHRfS_M"
SUPERBLOCK_SIZE: Final = 4096
#: Where the superblock is, and where its copies are if the device reaches so far.
COPIES: Final = (64 << 10, 64 << 20, 256 << 30)
MAGIC_OFFSET: Final = COPIES[0] + 0x40
#: The unit of stripes; no extent is allocated in the whole unit that has a superblock.
STRIPE: Final = 64 << 10

_HEAD: Final = Struct("<32x16sQQ8sQQQQQQQQQIIIIIQQQQHBBB")
_DEVICE_AT: Final = 0xC9
_METADATA_UUID_AT: Final = 0x23B
_ARRAY_AT: Final = 0x32B
_ARRAY_SIZE: Final = 2048
_MAX_LEVEL: Final = 8
_MIN_BLOCK, _MAX_BLOCK = 4096, 65536

INCOMPAT_MIXED_BACKREF: Final = 0x1
INCOMPAT_METADATA_UUID: Final = 0x400
RO_FREE_SPACE_TREE: Final = 1
RO_FREE_SPACE_VALID: Final = 2
RO_BLOCK_GROUP_TREE: Final = 8
#: Incompatible features that change nothing for a reader, or that are read.
_SUPPORTED: Final = (
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
)
_SIMPLE_QUOTA: Final = 0x10000
_NAMES: Final = {
    0x1000: "zoned",
    0x2000: "extent-tree-v2",
    0x4000: "raid-stripe-tree",
    0x20000: "remap-tree",
}
_RO_SUPPORTED: Final = 1 | 2 | 4 | 8
#: Flags of the superblock of which a reader need not know: 1 written, 2 reloc (both historical), 4
#: error.
_FLAGS_SUPPORTED: Final = 0x7
_FLAG_NAMES: Final = {
    1 << 32: "a seed device",
    1 << 33: "an image of btrfs-image",
    1 << 34: "an image of btrfs-image",
    1 << 35: "a change of the UUID that was interrupted",
    1 << 36: "a change of the UUID that was interrupted",
    1 << 38: "a conversion of block groups that was interrupted",
    1 << 39: "a change of the checksum that was interrupted",
    1 << 40: "a change of the checksum that was interrupted",
}


class Superblock(NamedTuple):
    """The fields that a reader needs; ``uuid`` is that of tree blocks, ``fsid`` the user's."""

    fsid: bytes
    uuid: bytes
    address: int
    flags: int
    magic: bytes
    generation: int
    root: int
    root_level: int
    chunk_root: int
    chunk_root_level: int
    chunk_root_generation: int
    log_root: int
    devices: int
    sector_size: int
    node_size: int
    compat_ro: int
    incompat: int
    checksum: int
    device: DeviceItem
    chunk_array: bytes

    @property
    def uuid_text(self) -> str:
        """The UUID as users see it."""
        return str(UUID(bytes=self.fsid))

    @property
    def has_free_space_tree(self) -> bool:
        """Whether the free space tree is there and valid."""
        wanted = RO_FREE_SPACE_TREE | RO_FREE_SPACE_VALID
        return self.compat_ro & wanted == wanted

    @property
    def has_block_group_tree(self) -> bool:
        """Whether block groups are in a tree of their own."""
        return bool(self.compat_ro & RO_BLOCK_GROUP_TREE)


def parse_superblock(raw: bytes) -> Superblock:
    """Decode a superblock of `SUPERBLOCK_SIZE` bytes; nothing is checked."""
    (
        fsid,
        address,
        flags,
        magic,
        generation,
        root,
        chunk_root,
        log_root,
        _log_transid,
        _total,
        _used,
        _root_dir,
        devices,
        sector_size,
        node_size,
        _leaf_size,
        _stripe_size,
        array_size,
        chunk_generation,
        _compat,
        compat_ro,
        incompat,
        checksum,
        level,
        chunk_level,
        _log_level,
    ) = _HEAD.unpack_from(raw)
    uuid = fsid
    if incompat & INCOMPAT_METADATA_UUID:
        uuid = raw[_METADATA_UUID_AT : _METADATA_UUID_AT + 16]
    return Superblock(
        fsid,
        uuid,
        address,
        flags,
        magic,
        generation,
        root,
        level,
        chunk_root,
        chunk_level,
        chunk_generation,
        log_root,
        devices,
        sector_size,
        node_size,
        compat_ro,
        incompat,
        checksum,
        unpack_device(raw, _DEVICE_AT),
        raw[_ARRAY_AT : _ARRAY_AT + min(array_size, _ARRAY_SIZE)],
    )


def _is_block_size(size: int) -> bool:
    return _MIN_BLOCK <= size <= _MAX_BLOCK and not size & (size - 1)


def superblock_fault(sb: Superblock, raw: bytes, offset: int) -> str:  # noqa: PLR0911 - faults
    """Return what is wrong with the superblock read at byte ``offset``, "" if it verifies."""
    if sb.magic != MAGIC:
        return "wrong magic number"
    if sb.checksum not in CHECKSUMS:
        return f"unknown kind of checksum {sb.checksum}"
    if not checksum_matches(sb.checksum, raw):
        return "checksum mismatch"
    if sb.address != offset:
        return "it belongs elsewhere"
    if not (
        _is_block_size(sb.sector_size)
        and _is_block_size(sb.node_size)
        and sb.sector_size <= sb.node_size
    ):
        return "invalid sector or node size"
    if max(sb.root_level, sb.chunk_root_level) >= _MAX_LEVEL:
        return "invalid height of a tree"
    if sb.generation == 0 or sb.chunk_root_generation > sb.generation:
        return "invalid generation"
    if sb.devices == 0 or sb.device.size < SUPERBLOCK_SIZE:
        return "invalid number or size of devices"
    return ""


def unsupported_features(sb: Superblock) -> list[str]:
    """Return the names of the features that change where owners are, and that are not read."""
    names: dict[str, None] = {}
    if not sb.incompat & INCOMPAT_MIXED_BACKREF:
        names["back references of before Linux 2.6.31"] = None
    for bit in _bits(sb.incompat & ~(_SUPPORTED | _SIMPLE_QUOTA)):
        names[_NAMES.get(bit, f"incompatible feature {bit:#x}")] = None
    for bit in _bits(sb.compat_ro & ~_RO_SUPPORTED):
        names[f"read-only compatible feature {bit:#x}"] = None
    for bit in _bits(sb.flags & ~_FLAGS_SUPPORTED):
        names[_FLAG_NAMES.get(bit, f"flag {bit:#x}")] = None
    return list(names)


def _bits(number: int) -> list[int]:
    return [1 << bit for bit in range(number.bit_length()) if number >> bit & 1]
