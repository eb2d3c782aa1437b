"""An ext4 volume: where its structures are, and verified reads of them.

Blocks count from the start of the medium.  Groups begin at the first data block.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import islice
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError, MediaError
from whoseblock.fs.ext4.format.descriptor import (
    BLOCK_UNINIT,
    INODE_UNINIT,
    Descriptor,
    bitmap_matches,
    parse_descriptor,
)
from whoseblock.fs.ext4.format.superblock import (
    INCOMPAT_FLEX_BG,
    INCOMPAT_META_BG,
    SUPERBLOCK_OFFSET,
    Superblock,
)
from whoseblock.media.base import Media

__all__ = ["Bitmap", "Volume", "bits_of"]

#: Bitmaps and blocks of descriptors that are kept.
_KEPT: Final = 64
#: Groups past the end of the device that are looked at: their inode tables may lie before it.
_MOST_MISSING: Final = 1 << 14
#: Copies of a block of descriptors that are tried.
_MOST_COPIES: Final = 8


class Bitmap(NamedTuple):
    """The bits of a group as "0" and "1"; ``fault`` is why they are not to be believed, or ""."""

    bits: str
    fault: str


def bits_of(raw: bytes, count: int) -> str:
    """Return the first ``count`` bits of a bitmap as text, the lowest of each byte first."""
    number = int.from_bytes(raw, "little") & ((1 << count) - 1)
    return format(number, f"0{count}b")[::-1]


class Volume:
    """The geometry of one filesystem on one medium; ``reads`` counts blocks by kind."""

    def __init__(self, media: Media, sb: Superblock) -> None:
        self.media = media
        self.sb = sb
        self.seed = sb.seed
        self.block_size = sb.block_size
        self.first = sb.first_data_block
        # A flex group may be larger than the filesystem.
        wide = sb.incompat & INCOMPAT_FLEX_BG and sb.log_groups_per_flex < 32  # noqa: PLR2004
        self.flex = 1 << sb.log_groups_per_flex if wide else 1
        self.blocks = sb.blocks_count
        # Fewer than there are only if the device is too small, which makes all answers incomplete.
        on_device = -(-media.size // (sb.blocks_per_group * self.block_size))
        self.groups = min(sb.groups_count, on_device + min(self.flex, _MOST_MISSING))
        self.ratio = sb.cluster_ratio
        self.size = self.blocks * self.block_size
        #: The block that has the superblock.
        self.super_block = SUPERBLOCK_OFFSET // self.block_size
        self.per_block = self.block_size // sb.desc_size
        self.reads: Counter[str] = Counter()
        #: By group, why a copy of its descriptor was used.
        self.copied: dict[int, str] = {}
        self._lost: set[int] = set()
        self._descriptor_block = lru_cache(_KEPT)(self._read_descriptor_block)
        self.inode_bitmap = lru_cache(_KEPT)(self._read_inode_bitmap)
        # An inode table never moves.
        self._table_start = lru_cache(_KEPT)(
            lambda group: self.descriptor(group).inode_table * self.block_size
        )

    # ------------------------------------------------------------------ where

    def group_start(self, group: int) -> int:
        """Return the first block of a group."""
        return self.first + group * self.sb.blocks_per_group

    def group_end(self, group: int) -> int:
        """Return the first block past a group; the last may be shorter."""
        return min(self.group_start(group + 1), self.blocks)

    def group_of(self, block: int) -> int:
        """Return the group that a block is in."""
        return (block - self.first) // self.sb.blocks_per_group

    def clusters_in(self, group: int) -> int:
        """Return how many clusters a group has."""
        return -(-(self.group_end(group) - self.group_start(group)) // self.ratio)

    def is_block(self, block: int, count: int = 1) -> bool:
        """Return whether ``count`` blocks from ``block`` can have an owner."""
        return self.first <= block and block + count <= self.blocks

    def descriptor_blocks(self, group: int) -> int:
        """Return how many blocks of descriptors and reserved ones follow a group's superblock.

        As the kernel's ``ext4_num_base_meta_clusters``.
        """
        if not self.sb.has_super(group):
            return 0
        total = -(-self.sb.groups_count // self.per_block)
        if self.sb.incompat & INCOMPAT_META_BG:
            if group >= self.sb.first_meta_bg * self.per_block:
                return 0
            total = self.sb.first_meta_bg
        return total + self.sb.reserved_gdt_blocks

    def meta_descriptor_block(self, group: int) -> int | None:
        """Return the block of descriptors of a meta-group that a group has, if it has one."""
        if not self.sb.incompat & INCOMPAT_META_BG:
            return None
        number, place = divmod(group, self.per_block)
        if number < self.sb.first_meta_bg or place not in {0, 1, self.per_block - 1}:
            return None
        return self._meta_block(group)

    def _meta_block(self, group: int) -> int:
        block = self.group_start(group) + self.sb.has_super(group)
        return block + (group == 0 and self.super_block > self.first)

    def _descriptors_at(self, number: int) -> int:
        """Return the ``number``-th block of descriptors."""
        if self.sb.incompat & INCOMPAT_META_BG and number >= self.sb.first_meta_bg:
            return self._meta_block(number * self.per_block)
        return self.super_block + 1 + number

    # ------------------------------------------------------------------ what

    def read_block(self, kind: str, block: int, count: int = 1, *, what: str = "") -> bytes:
        """Read blocks; raises `MediaError` that names them as ``what``, or as their kind."""
        self.reads[kind] += count
        try:
            return self.media.pread(block * self.block_size, count * self.block_size)
        except MediaError as error:
            raise MediaError(error.ranges, error.reason, f"{what or kind} {block}") from error

    def corrupt(self, what: str, block: int, reason: str) -> CorruptError:
        """Return the error about a block."""
        return CorruptError(what, block * self.block_size, reason)

    def _copies_of(self, number: int) -> Iterator[int]:
        """Yield the blocks of the copies of the ``number``-th block of descriptors."""
        if self.sb.incompat & INCOMPAT_META_BG and number >= self.sb.first_meta_bg:
            first = number * self.per_block
            for group in dict.fromkeys((first + 1, first + self.per_block - 1)):
                if first < group < self.sb.groups_count:
                    yield self._meta_block(group)
            return
        for group in self._copy_groups:
            yield self.group_start(group) + 1 + number

    @cached_property
    def _copy_groups(self) -> list[int]:
        groups = (one for one in range(1, self.sb.groups_count) if self.sb.has_super(one))
        return list(islice(groups, _MOST_COPIES))

    def _read_descriptor_block(self, block: int) -> bytes | BlockError:
        """Return a block of descriptors; an error, too, is kept, since its device may be slow."""
        try:
            return self.read_block("group descriptor block", block)
        except BlockError as error:
            return error

    def descriptor(self, group: int) -> Descriptor:
        """Return the descriptor of a group, verified; raises `BlockError`.

        If it is lost, what a copy says of the places of bitmaps and inode table is returned.
        """
        number = group // self.per_block
        try:
            return self._descriptor_in(self._descriptors_at(number), group)
        except BlockError as error:
            if group in self._lost:
                raise
            for block in self._copies_of(number):
                try:
                    found = self._descriptor_in(block, group)
                except BlockError:
                    continue
                self.copied[group] = f"{error}; the copy in block {block} was used"
                # The kernel writes copies when it grows a filesystem, and at no other time.
                return found._replace(flags=0, itable_unused=0, is_copy=True)
            self._lost.add(group)
            raise

    def _descriptor_in(self, block: int, group: int) -> Descriptor:
        """Return the descriptor of a group from a block of them; raises `BlockError`."""
        raw = self._descriptor_block(block)
        if isinstance(raw, BlockError):
            raise raw
        at = group % self.per_block * self.sb.desc_size
        found = parse_descriptor(self.sb, group, raw[at : at + self.sb.desc_size])
        if fault := self._descriptor_fault(group, found):
            raise self.corrupt(f"descriptor of group {group}", block, fault)
        return found

    def _descriptor_fault(self, group: int, found: Descriptor) -> str:
        if not found.is_valid:
            return "checksum mismatch"
        low, high = self.first, self.blocks
        if not self.sb.incompat & INCOMPAT_FLEX_BG:
            low, high = self.group_start(group), self.group_end(group)
        table = self.table_blocks
        for what, block, count in (
            ("block bitmap", found.block_bitmap, 1),
            ("inode bitmap", found.inode_bitmap, 1),
            ("inode table", found.inode_table, table),
        ):
            if block < low or block + count > high:
                return f"the {what} cannot be at block {block}"
        if found.itable_unused > self.sb.inodes_per_group:
            return "wrong number of unused inodes"
        return ""

    @property
    def table_blocks(self) -> int:
        """The number of blocks of an inode table."""
        return -(-self.sb.inodes_per_group * self.sb.inode_size // self.block_size)

    def _read_inode_bitmap(self, group: int) -> Bitmap:
        """Return the inode bitmap of a group; a group without inodes has zeros."""
        count = self.sb.inodes_per_group
        try:
            descriptor = self.descriptor(group)
            if descriptor.flags & INODE_UNINIT:
                wrong = descriptor.free_inodes != count
                fault = f"group {group} has inodes in use, but no inode table" if wrong else ""
                return Bitmap("0" * count, fault)
            raw = self.read_block("inode bitmap", descriptor.inode_bitmap)
        except BlockError as error:
            return Bitmap("", str(error))
        bits = bits_of(raw, count)
        what = f"the inode bitmap of group {group}"
        fault = ""
        if descriptor.is_copy:
            fault = f"{what} cannot be verified without its descriptor"
        elif not bitmap_matches(self.sb, raw, count, descriptor.inode_bitmap_csum):
            fault = f"{what} has a wrong checksum"
        elif bits.count("0") != descriptor.free_inodes:
            fault = f"{what} contradicts the number of free inodes"
        elif "1" in bits[count - descriptor.itable_unused :]:
            fault = f"{what} contradicts the number of unused inodes"
        return Bitmap(bits, fault)

    def read_block_bitmap(self, group: int) -> Bitmap:
        """Return the block bitmap of a group; the bits are "" if it was never written."""
        try:
            descriptor = self.descriptor(group)
            if descriptor.flags & BLOCK_UNINIT:
                return Bitmap("", "")
            raw = self.read_block("block bitmap", descriptor.block_bitmap)
        except BlockError as error:
            return Bitmap("", str(error))
        count = self.clusters_in(group)
        bits = bits_of(raw, count)
        what = f"the block bitmap of group {group}"
        if descriptor.is_copy:
            return Bitmap(bits, f"{what} cannot be verified without its descriptor")
        whole = self.sb.clusters_per_group
        if not bitmap_matches(self.sb, raw, whole, descriptor.block_bitmap_csum):
            return Bitmap(bits, f"{what} has a wrong checksum")
        if bits.count("0") != descriptor.free_clusters:
            return Bitmap(bits, f"{what} contradicts the number of free blocks")
        return Bitmap(bits, "")

    def inode_place(self, number: int) -> tuple[int, int]:
        """Return the group of an inode and its place in the group; raises `CorruptError`."""
        if not 0 < number <= self.sb.inodes_count:
            raise CorruptError(f"inode {number}", 0, "there is no such inode")
        return divmod(number - 1, self.sb.inodes_per_group)

    def read_inode(self, number: int) -> bytes:
        """Return an inode as it lies in its table; raises `BlockError`."""
        group, place = self.inode_place(number)
        start = self._table_start(group) + place * self.sb.inode_size
        self.reads["inode"] += 1
        try:
            return self.media.pread(start, self.sb.inode_size)
        except MediaError as error:
            raise MediaError(error.ranges, error.reason, f"inode {number}") from error
