"""The entries of directories: in blocks, with or without an htree, or inside the inode."""

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.ext4.format import directory, xattr
from whoseblock.fs.ext4.format.checksum import LE32
from whoseblock.fs.ext4.format.hashes import (
    DX_HASH_TEA,
    SIGNED_VERSIONS,
    hash_of_name,
    nokey_name,
)
from whoseblock.fs.ext4.format.inode import (
    EXT4_CASEFOLD_FL,
    EXT4_ENCRYPT_FL,
    EXT4_INDEX_FL,
    Inode,
    checksum_seed,
)
from whoseblock.fs.ext4.format.superblock import COMPAT_DIR_INDEX, INCOMPAT_FILETYPE
from whoseblock.fs.ext4.inodes import inode_at, read_fork
from whoseblock.fs.ext4.volume import Volume

__all__ = ["Directories", "Link"]

#: With more inodes to find than this, every entry is decoded, instead of searching for bytes.
_MOST_SEARCHED: Final = 8
_INLINE_PARENT: Final = 4
#: How often one search may read each block of a filesystem, and the blocks that it may in any case.
_EACH_BLOCK: Final = 4
_MOST_SMALL: Final = 1 << 16
#: Where the root of an htree has the version of its hash.
_ROOT_HASH_VERSION: Final = 28
EXT2_FLAGS_UNSIGNED_HASH: Final = 2


class Link(NamedTuple):
    """A name of an inode in a directory; ``encrypted`` if the directory is.

    ``file_type`` is what the entry says the inode is, 0 if nothing.
    """

    parent: int
    name: bytes
    encrypted: bool
    file_type: int


class Directories:
    """Reads the directories of a volume.

    ``faults`` collects, by directory, why entries may be missing.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.faults: dict[int, str] = {}
        #: Blocks that may still be read: honest directories are read a few times at most.
        self._left = _EACH_BLOCK * volume.blocks + _MOST_SMALL

    def parent(self, number: int) -> int:
        """Return what ``..`` of a directory is; raises `BlockError`."""
        volume = self.volume
        inode, _ = inode_at(volume, number)
        if not inode.is_dir:
            raise volume.corrupt(f"inode {number}", 0, "not a directory")
        if inode.is_inline:
            return int(LE32.unpack_from(inode.i_block)[0])
        for raw, fault in self._blocks(number, inode):
            if fault:
                raise volume.corrupt(f"directory inode {number}", 0, fault)
            for entry in self._decode(raw, inode):
                if not isinstance(entry, str) and entry.name == b"..":
                    return entry.inode
            break
        raise volume.corrupt(f"directory inode {number}", 0, "it has no parent")

    def find(self, number: int, wanted: Collection[int]) -> Iterator[tuple[int, Link]]:
        """Yield ``(inode, link)`` for each name that a directory has of the inodes ``wanted``.

        Whatever cannot be read or verified is added to `faults`.
        """
        few = len(wanted) <= _MOST_SEARCHED
        patterns = [LE32.pack(one) for one in wanted] if few else []
        try:
            inode, raw = inode_at(self.volume, number)
            if not inode.is_dir:
                raise self.volume.corrupt(f"inode {number}", 0, "not a directory")
            parts = self._inline(raw, inode) if inode.is_inline else self._blocks(number, inode)
            for content, fault in parts:
                if fault:
                    self.faults[number] = f"directory inode {number}: {fault}"
                elif not few or any(pattern in content for pattern in patterns):
                    yield from self._named(number, inode, content, wanted)
        except BlockError as error:
            self.faults[number] = f"directory inode {number}: {error}"

    def _named(
        self, number: int, inode: Inode, content: bytes, wanted: Collection[int]
    ) -> Iterator[tuple[int, Link]]:
        """Yield the names that a part of a directory has of the inodes ``wanted``."""
        encrypted = bool(inode.flags & EXT4_ENCRYPT_FL)
        version = self._hash_version(number, inode) if encrypted else None
        for entry in self._decode(content, inode, wanted):
            if isinstance(entry, str):
                self.faults[number] = f"directory inode {number}: {entry}"
            elif entry.name not in {b".", b".."}:
                # The names of an encrypted directory have any bytes.
                if encrypted:
                    name = self._nokey_name(entry, version)
                    yield entry.inode, Link(number, name, encrypted, entry.file_type)
                elif directory.is_name(entry.name):
                    yield entry.inode, Link(number, entry.name, encrypted, entry.file_type)
                else:
                    self.faults[number] = f"directory inode {number}: an impossible name"

    def _nokey_name(self, entry: directory.Entry, version: int | None) -> bytes:
        """Return the kernel's name for an entry without the key of its directory."""
        found = entry.hash
        if found is None and version is not None:
            found = hash_of_name(entry.name, version, self.volume.sb.hash_seed)
        return nokey_name(entry.name, found or (0, 0))

    def _hash_version(self, number: int, inode: Inode) -> int | None:
        """Return how the kernel hashes the names of a directory, None if it does not.

        As its ``is_dx_dir`` and ``ext4_htree_fill_tree``.
        """
        sb = self.volume.sb
        has_tree = bool(inode.flags & EXT4_INDEX_FL)
        is_small = inode.size == self.volume.block_size or inode.is_inline
        if not sb.compat & COMPAT_DIR_INDEX or not (has_tree or is_small):
            return None
        version = sb.def_hash_version
        if has_tree:
            for content, _ in self._blocks(number, inode):
                version = content[_ROOT_HASH_VERSION] if content else version
                break
        if version <= DX_HASH_TEA and sb.flags & EXT2_FLAGS_UNSIGNED_HASH:
            version += SIGNED_VERSIONS
        return version

    def _decode(
        self, raw: bytes, inode: Inode, wanted: Collection[int] | None = None
    ) -> Iterator[directory.Entry | str]:
        """Decode the entries of a part of a directory, all or those of the inodes ``wanted``."""
        both = EXT4_CASEFOLD_FL | EXT4_ENCRYPT_FL
        has_types = bool(self.volume.sb.incompat & INCOMPAT_FILETYPE)
        has_hashes = inode.flags & both == both
        if wanted is None:
            return directory.entries(raw, has_types=has_types, has_hashes=has_hashes)
        return directory.entries_of(raw, wanted, has_types=has_types, has_hashes=has_hashes)

    def _blocks(self, number: int, inode: Inode) -> Iterator[tuple[bytes, str]]:
        """Yield the blocks of a directory, each with its fault or ""; raises `BlockError`."""
        volume = self.volume
        seed = checksum_seed(volume.seed, number, inode.generation)
        end = -(-inode.size // volume.block_size)
        is_tree = bool(inode.flags & EXT4_INDEX_FL)
        count = 0
        for logical, block, content in read_fork(volume, number, inode):
            if logical >= end:
                continue
            count += 1
            self._left -= 1
            if self._left < 0:
                yield b"", "directories claim more blocks than the filesystem has"
                return
            if content is None:
                yield b"", f"block {block} cannot be read"
            elif volume.sb.has_checksums and not directory.block_matches(
                seed, content, may_be_node=is_tree
            ):
                yield b"", f"block {block} has a wrong checksum"
            else:
                yield content, ""
        if count < end:
            yield b"", f"it has {end} blocks by its size, and {count} were found"

    def _inline(self, raw: bytes, inode: Inode) -> Iterator[tuple[bytes, str]]:
        """Yield the parts of an inline directory."""
        size = inode.size
        yield inode.i_block[_INLINE_PARENT : max(min(size, len(inode.i_block)), 0)], ""
        if size <= len(inode.i_block):
            return
        for one in xattr.inode_attributes(raw) or []:
            if one.prefix == xattr.EXT4_XATTR_INDEX_SYSTEM and one.name == b"data" and one.value:
                yield one.value, ""
                return
        yield b"", "the part of it that is an attribute is lost"
