"""Damage to images of ext2, ext3 and ext4: bits, blocks, and lies with right checksums.

Where things are comes from the truth of the healthy image.  Offsets are those of the kernel's
documentation, Documentation/filesystems/ext4.
"""

import random
import struct
from typing import Final, NamedTuple

from tests.support.ext4_images import FIXED, Truth

from whoseblock.fs.ext4.format.checksum import crc32c
from whoseblock.fs.ext4.format.superblock import Superblock

__all__ = ["Parts", "Wounds", "find_parts"]

_ALL: Final = 0xFFFFFFFF
_LE16: Final = struct.Struct("<H")
_LE32: Final = struct.Struct("<I")
_CHECKSUM_AT: Final = 0x1E
_GENERATION: Final = 0x64
_ROOT: Final = 0x28
_EXTENT_MAGIC: Final = 0xF30A
_EXTENTS_FL: Final = 0x80000
_INDIRECT: Final = 12
_SUPERBLOCK: Final = 1024
_METADATA: Final = (
    *FIXED,
    "directory",
    "extent-map",
    "xattr",
)
#: How often a place that matters is chosen, instead of any place.
_OFTEN: Final = 0.7
#: Fields of inodes: mode, size, dtime, links, flags, the first extent's length and start, the
#: second's, the depth, the attribute block; offset and width.
_INODE_FIELDS: Final = (
    (0x0, 2),
    (0x4, 4),
    (0x14, 4),
    (0x1A, 2),
    (0x20, 4),
    (0x2A, 2),
    (0x2E, 2),
    (0x34, 4),
    (0x38, 2),
    (0x3A, 2),
    (0x3C, 4),
    (0x40, 4),
    (0x48, 4),
    (0x68, 4),
)


def _crc(seed: int, data: bytes | bytearray) -> int:
    return crc32c(seed, bytes(data))


class Parts(NamedTuple):
    """The places of the parts of an image.

    ``inodes`` and ``descriptors`` are bytes, by inode and by group; ``metadata`` has blocks by
    kind, and the other dictionaries have the inode or group of each block.  ``owners`` are inodes
    with blocks.
    """

    sb: Superblock
    inodes: dict[int, int]
    descriptors: dict[int, int]
    block_bitmaps: dict[int, int]
    inode_bitmaps: dict[int, int]
    maps: dict[int, int]
    folders: dict[int, int]
    attributes: list[int]
    metadata: dict[str, list[int]]
    owners: list[int]
    free: list[int]


def find_parts(raw: bytes, truth: Truth, sb: Superblock) -> Parts:
    """Find the parts of an image whose descriptors follow its first superblock."""
    size = truth.block_size
    descriptors = {
        group: (_SUPERBLOCK // size + 1) * size + group * sb.desc_size
        for group in range(sb.groups_count)
    }
    block_bitmaps, inode_bitmaps, tables = (
        {group: _LE32.unpack_from(raw, place + at)[0] for group, place in descriptors.items()}
        for at in (0, 4, 8)
    )
    used = {one.inode for claims in truth.claims for one in claims} | truth.paths.keys()
    inodes = {}
    for number in sorted(used - {0}):
        group, place = divmod(number - 1, sb.inodes_per_group)
        inodes[number] = tables[group] * size + place * sb.inode_size
    maps, folders, attributes, free = {}, {}, [], []
    metadata: dict[str, list[int]] = {what: [] for what in _METADATA}
    full = {place // size for place in inodes.values()}
    for block, claims in enumerate(truth.claims):
        for claim in claims:
            if claim.what == "extent-map":
                maps[block] = claim.inode
            elif claim.what == "directory":
                folders[block] = claim.inode
            elif claim.what == "xattr":
                attributes.append(block)
            elif claim.what == "free":
                free.append(block)
        for what in {claim.what for claim in claims} & metadata.keys():
            if what != "inodes" or block in full:
                metadata[what].append(block)
    return Parts(
        sb,
        inodes,
        descriptors,
        {block: group for group, block in block_bitmaps.items()},
        {block: group for group, block in inode_bitmaps.items()},
        maps,
        folders,
        sorted(set(attributes)),
        {what: blocks for what, blocks in metadata.items() if blocks},
        sorted({one.inode for claims in truth.claims for one in claims} - {0}),
        free,
    )


class Wounds:
    """Damages a copy of an image, at random.

    ``words`` describe it, ``lost`` are unreadable blocks.  ``sealed`` is whether something lies
    with a right checksum, and ``forged`` whether it is the superblock.
    """

    def __init__(self, raw: bytes, truth: Truth, parts: Parts, rnd: random.Random) -> None:
        self.raw = bytearray(raw)
        self.healthy = raw
        self.truth = truth
        self.parts = parts
        self.rnd = rnd
        self.size = truth.block_size
        self.lost: set[int] = set()
        self.sealed = False
        self.forged = False
        self.words: list[str] = []

    def inflict(self, kind: str = "") -> None:
        """Add one to four wounds, or one of a kind."""
        plain = (self._bit, self._inode_bit, self._zero, self._noise, self._copy, self._unreadable)
        kinds = [*plain, *plain, self._superblock_bit]
        lies = (self._field, self._field, self._word, self._word, self._claim_twice)
        loops = (self._extent_loop, self._indirect_loop, self._folder_loop, self._orphan_loop)
        kinds += [*lies, *loops]
        count = 1 if kind else self.rnd.choice((1, 1, 1, 2, 4))
        for _ in range(count):
            wound = self.rnd.choice([one for one in kinds if kind in {"", one.__name__[1:]}])
            self.words.append(f"{wound.__name__[1:].replace('_', ' ')} {wound()}")

    # ------------------------------------------------------------------ without right checksums

    def _block(self) -> int:
        """Return a block of metadata, of each kind as often."""
        return self.rnd.choice(self.rnd.choice([*self.parts.metadata.values()]))

    def _inode(self) -> int:
        """Return an inode, most often one with blocks."""
        has_blocks = self.rnd.random() < _OFTEN
        return self.rnd.choice(self.parts.owners if has_blocks else [*self.parts.inodes])

    def _place(self, block: int, width: int) -> int:
        """Return a byte of a block, most often where it is not 0."""
        places = range(block * self.size, (block + 1) * self.size, width)
        if self.rnd.random() < _OFTEN:
            full = [one for one in places if any(self.raw[one : one + width])]
            return self.rnd.choice(full or places)
        return self.rnd.choice(places)

    def _bit(self) -> str:
        place = self._place(self._block(), 1)
        self.raw[place] ^= 1 << self.rnd.randrange(8)
        return f"at byte {place}"

    def _inode_bit(self) -> str:
        number = self._inode()
        at, width = self.rnd.choice(_INODE_FIELDS)
        at += self.rnd.randrange(width)
        if self.rnd.random() > _OFTEN:
            at = self.rnd.randrange(self.parts.sb.inode_size)
        self.raw[self.parts.inodes[number] + at] ^= 1 << self.rnd.randrange(8)
        return f"of inode {number} at {at:#x}"

    def _superblock_bit(self) -> str:
        at = self.rnd.choice([*range(0x68), *range(0xCE, 0x110), *range(0x150, 0x290)])
        self.raw[_SUPERBLOCK + at] ^= 1 << self.rnd.randrange(8)
        self.forged = not self.parts.sb.has_checksums
        return f"at {at:#x}"

    def _put(self, block: int, content: bytes) -> None:
        self.raw[block * self.size : (block + 1) * self.size] = content

    def _zero(self) -> str:
        block = self._block()
        self._put(block, bytes(self.size))
        return f"block {block}"

    def _noise(self) -> str:
        block = self._block()
        self._put(block, self.rnd.randbytes(self.size))
        return f"block {block}"

    def _copy(self) -> str:
        block, other = self._block(), self._block()
        self._put(block, self.healthy[other * self.size : (other + 1) * self.size])
        return f"of block {other} to {block}"

    def _unreadable(self) -> str:
        block = self._block()
        self.lost.add(block)
        return f"block {block}"

    # ------------------------------------------------------------------ with right checksums

    def _value(self, width: int) -> int:
        """Return a value that may look right: the number of a block or inode, or a small one."""
        values = (
            self.rnd.randrange(len(self.truth.claims)),
            self.rnd.choice([*self.parts.inodes]),
            self.rnd.randrange(40),
            (1 << 8 * width) - 1,
            0,
        )
        return self.rnd.choice(values) & (1 << 8 * width) - 1

    def _field(self) -> str:
        number = self._inode()
        at, width = self.rnd.choice(_INODE_FIELDS)
        value = self._value(width)
        place = self.parts.inodes[number] + at
        self.raw[place : place + width] = value.to_bytes(width, "little")
        self._seal_inode(number)
        return f"{at:#x} of inode {number} = {value}"

    def _word(self) -> str:
        """Change a word of a block, most often one that is not 0, and make its checksum right."""
        block, width = self._block(), self.rnd.choice((2, 4))
        place = self._place(block, width)
        value = self._value(width)
        self.raw[place : place + width] = value.to_bytes(width, "little")
        self._seal(block)
        return f"of {width} bytes at byte {place} of block {block} = {value}"

    def _claim_twice(self) -> str:
        """Write the first extent of one file into another."""
        plain = [number for number in self.parts.owners if self._is_plain(number)]
        if len(plain) < 2:
            return "of nothing"
        one, other = self.rnd.sample(plain, 2)
        source, target = (self.parts.inodes[number] + _ROOT for number in (one, other))
        at = 16 if self._has_extents(one) else 0
        length = 8 if at else 4
        self.raw[target + at : target + at + length] = self.raw[source + at : source + at + length]
        self._seal_inode(other)
        return f"of inode {one} to {other}"

    def _has_extents(self, number: int) -> bool:
        flags: int = _LE32.unpack_from(self.healthy, self.parts.inodes[number] + 0x20)[0]
        return bool(flags & _EXTENTS_FL)

    def _is_plain(self, number: int) -> bool:
        """Return whether an inode has extents in itself, or direct blocks."""
        place = self.parts.inodes[number] + _ROOT
        if self._has_extents(number):
            _, entries, _, depth = struct.unpack_from("<4H", self.raw, place)
            return bool(entries) and depth == 0
        return not self.parts.sb.has_checksums

    # ------------------------------------------------------------------ loops

    def _extent_loop(self) -> str:
        """Make a tree whose nodes, the last of them empty, are reached very many times."""
        with_extents = [one for one in self.parts.owners if self._has_extents(one)]
        if not with_extents or len(self.parts.free) < 5:
            return "of nothing"
        number = self.rnd.choice(with_extents)
        blocks = self.rnd.sample(self.parts.free, 4)
        most = (self.size - 16) // 12
        place = self.parts.inodes[number] + _ROOT
        straight = self.rnd.random() < 0.3
        root = struct.pack("<4HI", _EXTENT_MAGIC, 4, 4, 5, 0)
        root += b"".join(struct.pack("<IIHH", at << 28, blocks[0], 0, 0) for at in range(4))
        self.raw[place : place + len(root)] = root
        for level, block in enumerate(blocks):
            below = block if straight else blocks[min(level + 1, 3)]
            count = 0 if level == 3 and not straight else most
            depth = 4 - level
            node = struct.pack("<4HI", _EXTENT_MAGIC, count, most, depth, 0)
            node += b"".join(struct.pack("<IIHH", at, below, 0, 0) for at in range(count))
            self._put(block, node.ljust(self.size, b"\0"))
            self._seal_map(block, number)
        self._seal_inode(number)
        return f"of inode {number} in blocks {blocks}"

    def _indirect_loop(self) -> str:
        """Make an indirect block its own child."""
        maps = [block for block, inode in self.parts.maps.items() if not self._has_extents(inode)]
        if not maps:
            return "of nothing"
        block = self.rnd.choice(maps)
        number = self.parts.maps[block]
        self._put(block, _LE32.pack(block) * (self.size // 4))
        place = self.parts.inodes[number] + _ROOT + 4 * (_INDIRECT + self.rnd.randrange(3))
        self.raw[place : place + 4] = _LE32.pack(block)
        self._seal_inode(number)
        return f"of inode {number} in block {block}"

    def _folder_loop(self) -> str:
        """Move a directory below itself: its own name, or its parent, is another's."""
        block, other = (self.rnd.choice([*self.parts.folders]) for _ in range(2))
        folder, inode = self.parts.folders[block], self.parts.folders[other]
        at = block * self.size
        # `..` is the second entry, and another entry follows.
        for _ in range(self.rnd.choice((1, 1, 2, 3))):
            length = _LE16.unpack_from(self.raw, at + 4)[0]
            if at % self.size + length + 12 < self.size and length:
                at += length
        self.raw[at : at + 4] = _LE32.pack(inode)
        self._seal_folder(block, folder)
        return f"of inode {folder} in block {block} to {inode}"

    def _orphan_loop(self) -> str:
        """Put inodes on the list of orphans, which never ends."""
        chain = self.rnd.sample([*self.parts.inodes], 3)
        for one, following in zip(chain, [*chain[1:], self.rnd.choice(chain)], strict=True):
            place = self.parts.inodes[one]
            self.raw[place + 0x14 : place + 0x18] = _LE32.pack(following)
            if self.rnd.random() < 0.5:
                self.raw[place + 0x1A : place + 0x1C] = b"\0\0"
            self._seal_inode(one)
        self.raw[_SUPERBLOCK + 0xE8 : _SUPERBLOCK + 0xEC] = _LE32.pack(chain[0])
        self._seal_superblock()
        return f"of inodes {chain}"

    # ------------------------------------------------------------------ checksums

    def _seal(self, block: int) -> None:
        """Make the checksum of a block right, and those that depend on it."""
        parts = self.parts
        self.sealed = True
        if block in parts.maps:
            self._seal_map(block, parts.maps[block])
        elif block in parts.folders:
            self._seal_folder(block, parts.folders[block])
        elif block in parts.attributes:
            self._seal_attributes(block)
        elif block in parts.block_bitmaps:
            self._seal_bitmap(block, parts.block_bitmaps[block], 0x18, parts.sb.clusters_per_group)
        elif block in parts.inode_bitmaps:
            self._seal_bitmap(block, parts.inode_bitmaps[block], 0x1A, parts.sb.inodes_per_group)
        else:
            self._seal_within(range(block * self.size, (block + 1) * self.size))

    def _seal_within(self, places: range) -> None:
        """Make the checksums of inodes, descriptors and the superblock at some bytes right."""
        for number, place in self.parts.inodes.items():
            if place in places:
                self._seal_inode(number)
        for group, place in self.parts.descriptors.items():
            if place in places:
                self._seal_descriptor(group)
        if _SUPERBLOCK in places:
            self.forged = True
            self._seal_superblock()

    def _seal_superblock(self) -> None:
        self.sealed = True
        crc = _crc(_ALL, self.raw[_SUPERBLOCK : _SUPERBLOCK + 0x3FC])
        self.raw[_SUPERBLOCK + 0x3FC : _SUPERBLOCK + 0x400] = _LE32.pack(crc)

    def _seal_descriptor(self, group: int) -> None:
        sb, place = self.parts.sb, self.parts.descriptors[group]
        self.raw[place + _CHECKSUM_AT : place + _CHECKSUM_AT + 2] = b"\0\0"
        crc = _crc(sb.seed, _LE32.pack(group))
        crc = _crc(crc, self.raw[place : place + sb.desc_size])
        if sb.has_checksums:
            self.raw[place + _CHECKSUM_AT : place + _CHECKSUM_AT + 2] = _LE16.pack(crc & 0xFFFF)

    def _seal_bitmap(self, block: int, group: int, at: int, bits: int) -> None:
        sb, place = self.parts.sb, self.parts.descriptors[group]
        if not sb.has_checksums:
            return
        crc = _crc(sb.seed, self.raw[block * self.size : block * self.size + bits // 8])
        self.raw[place + at : place + at + 2] = _LE16.pack(crc & 0xFFFF)
        if sb.desc_size > 32:
            high = place + at + 0x20
            self.raw[high : high + 2] = _LE16.pack(crc >> 16)
        self._seal_descriptor(group)

    def _seed_of(self, number: int) -> int:
        place = self.parts.inodes[number] + _GENERATION
        return _crc(self.parts.sb.seed, _LE32.pack(number) + self.raw[place : place + 4])

    def _seal_inode(self, number: int) -> None:
        self.sealed = True
        if not self.parts.sb.has_checksums:
            return
        place, size = self.parts.inodes[number], self.parts.sb.inode_size
        ends = [place + 0x7C, place + 0x82]
        for at in ends:
            self.raw[at : at + 2] = b"\0\0"
        crc = _crc(self._seed_of(number), self.raw[place : place + size])
        for at in ends:
            self.raw[at : at + 2] = _LE16.pack(crc & 0xFFFF)
            crc >>= 16

    def _seal_map(self, block: int, number: int) -> None:
        at = block * self.size
        end = at + 12 * (_LE16.unpack_from(self.raw, at + 4)[0] + 1)
        if self.parts.sb.has_checksums and end + 4 <= at + self.size:
            self.raw[end : end + 4] = _LE32.pack(_crc(self._seed_of(number), self.raw[at:end]))

    def _seal_folder(self, block: int, number: int) -> None:
        """Make the checksum of a leaf right; nodes of htrees stay wrong."""
        self.sealed = True
        at, end = block * self.size, (block + 1) * self.size - 12
        if self.parts.sb.has_checksums and self.raw[end + 4 : end + 8] == b"\x0c\0\0\xde":
            crc = _crc(self._seed_of(number), self.raw[at:end])
            self.raw[end + 8 : end + 12] = _LE32.pack(crc)

    def _seal_attributes(self, block: int) -> None:
        at = block * self.size
        self.raw[at + 0x10 : at + 0x14] = bytes(4)
        crc = _crc(self.parts.sb.seed, struct.pack("<Q", block))
        crc = _crc(crc, self.raw[at : at + self.size])
        if self.parts.sb.has_checksums:
            self.raw[at + 0x10 : at + 0x14] = _LE32.pack(crc)
