"""Faults put into the driver of ext4, which the judge of damaged images must notice.

Each takes one check out.  A check whose loss goes unnoticed is either not needed or not judged.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple
from unittest.mock import patch

from whoseblock.fs.ext4 import inodes, scan
from whoseblock.fs.ext4.format import directory, extents
from whoseblock.fs.ext4.names import orphans
from whoseblock.fs.ext4.names.paths import PathFinder
from whoseblock.fs.ext4.owners.allocation import Allocation
from whoseblock.fs.ext4.owners.finder import Answers
from whoseblock.fs.ext4.scan import InodeScan
from whoseblock.fs.ext4.volume import Bitmap, Volume
from whoseblock.fs.pieces import UNKNOWN, Piece
from whoseblock.fs.scan.engine import Found

__all__ = ["MUTATIONS", "Mutation", "mutated"]


class _Forgetful(set[Any]):
    """A set that contains nothing, so that no loop is noticed."""

    def __contains__(self, _item: object) -> bool:
        return False


def _true(*_: object, **__: object) -> bool:
    return True


def _none(*_: object, **__: object) -> None:
    return None


def _gap(self: Answers, low: int, high: int, pieces: list[Piece], _notes: dict[str, None]) -> None:
    """Report blocks as unknown without a note."""
    size = self.volume.block_size
    pieces.append(Piece(low * size, (high - low) * size, UNKNOWN))


def _no_text(*_: object, **__: object) -> str:
    return ""


_bitmaps = Volume.read_block_bitmap, Volume._read_inode_bitmap
_read_table = InodeScan._read
_parse_extents = extents.parse_extents


def _believe(number: int) -> Callable[..., Bitmap]:
    def read(self: Volume, group: int) -> Bitmap:
        found: Bitmap = _bitmaps[number](self, group)
        return found._replace(fault="") if found.bits else found

    return read


def _read_readable(self: InodeScan, start: int, length: int) -> Iterator[tuple[int, bytes | str]]:
    return (item for item in _read_table(self, start, length) if isinstance(item[1], bytes))


def _parse_anywhere(raw: bytes, depth: int | None, *_: int) -> object:
    return _parse_extents(raw, depth)


class Mutation(NamedTuple):
    """A check to take out: the image and the damage that show it, and what takes whose place.

    ``block`` is the kind of metadata that is damaged, or whose owners are, "" for any.
    """

    base: str
    damage: str
    block: str
    patches: tuple[tuple[object, str, object], ...]


MUTATIONS: Final = {
    "inode checksums": Mutation(
        "ext4",
        "inode_bit",
        "",
        ((scan, "inode_matches", _true), (inodes, "inode_matches", _true)),
    ),
    "extent checksums": Mutation("ext4", "bit", "extent-map", ((extents, "block_matches", _true),)),
    "directory checksums": Mutation(
        "ext4", "bit", "directory", ((directory, "block_matches", _true),)
    ),
    "counts of attributes": Mutation(
        "attributes", "field", "xattr", ((Answers, "_check_sharers", _no_text),)
    ),
    "faults of block bitmaps": Mutation(
        "bigalloc",
        "bit",
        "",
        ((Volume, "read_block_bitmap", _believe(0)), (Allocation, "_count_fault", "")),
    ),
    "checks of inode bitmaps and inodes": Mutation(
        "ext4",
        "bit",
        "inode-bitmap",
        (
            (Volume, "_read_inode_bitmap", _believe(1)),
            (Found, "add_unread", _none),
            (Answers, "_unowned", _gap),
        ),
    ),
    "lost inode tables": Mutation(
        "ext4",
        "unreadable",
        "",
        ((InodeScan, "_read", _read_readable), (Answers, "_unowned", _gap)),
    ),
    "unread inodes": Mutation(
        "ext4", "inode_bit", "", ((Found, "add_unread", _none), (Answers, "_unowned", _gap))
    ),
    "blocks of no inode": Mutation("ext4", "field", "", ((Answers, "_unowned", _gap),)),
    "claims of one block": Mutation(
        "ext2", "claim_twice", "", ((Answers, "_check_claims", _none),)
    ),
    "loops of extents": Mutation(
        "ext4",
        "extent_loop",
        "",
        (
            (inodes, "set", _Forgetful),
            (InodeScan, "_count_map_block", _none),
            (extents, "parse_extents", _parse_anywhere),
        ),
    ),
    "loops of indirect blocks": Mutation(
        "ext2",
        "indirect_loop",
        "",
        ((inodes, "set", _Forgetful), (InodeScan, "_count_map_block", _none)),
    ),
    "loops of orphans": Mutation("ext4", "orphan_loop", "", ((orphans, "set", _Forgetful),)),
    "missing names": Mutation("ext4", "unreadable", "", ((PathFinder, "_note_missing", _none),)),
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Remove one check from the driver."""
    with ExitStack() as stack:
        for target, attribute, new in MUTATIONS[name].patches:
            # ``set`` is a builtin, which a module may hide.
            stack.enter_context(patch.object(target, attribute, new, create=attribute == "set"))
        yield
