"""Every check of a scan of inodes, alone: one structure lies, with a right checksum.

Nothing else on the image is wrong, so that only one check can tell.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.image_damage import Overlay, seal
from tests.support.tools import xfsprogs
from tests.support.xfs_images import Geometry, make_image
from tests.support.xfsdb import walk

from whoseblock.fs.xfs.btree import INOBT
from whoseblock.fs.xfs.filesystem import XfsFilesystem
from whoseblock.media.device import FileMedia

_BLOCK, _INODE = 4096, 512
# Offsets of the format's documentation.
_FORMAT, _NBLOCKS, _BIG_NEXTENTS, _FORK = 5, 64, 24, 176
_AGI_COUNT, _AGI_SECTOR = 16, 2
_RECORD = 16


class _Made(NamedTuple):
    """An image without a reverse map; inodes of files with one, three and many extents."""

    image: Path
    single: int
    several: int
    many: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> _Made:
    xfsprogs("xfs_db")
    folder = tmp_path_factory.mktemp("lies")
    content = folder / "content"
    content.mkdir()
    for name, extents in (("single", 1), ("several", 3), ("many", 300)):
        with (content / name).open("wb", buffering=0) as file:
            for index in range(extents):
                os.pwrite(file.fileno(), b"d" * 2 * _BLOCK, index * 65536)
    geometry = Geometry("lies", rmapbt=False, reflink=False, parent=False, groups=2)
    image = make_image(folder / "lies.img", geometry, content=content)
    numbers = {inode.paths[0]: number for number, inode in walk(image).items()}
    return _Made(image, *(numbers[f"/{name}"] for name in ("single", "several", "many")))


class _Bytes:
    """The bytes of an image, and what replaces some of them."""

    def __init__(self, made: _Made) -> None:
        self.media = FileMedia(made.image)
        self.healthy = XfsFilesystem(FileMedia(made.image))
        self.replaced: dict[int, bytes] = {}
        self.asked = [(self.start(number), _BLOCK) for number in (made.single, made.several)]

    def place(self, inode: int) -> int:
        """Return the byte of an inode."""
        place = self.healthy.volume.inode_to_byte(inode)
        assert place is not None
        return place

    def start(self, inode: int, index: int = 0) -> int:
        """Return the byte of an extent of a file whose extents lie in its inode."""
        at = self.place(inode) + _FORK + index * _RECORD
        record = int.from_bytes(self.media.pread(at, _RECORD), "big")
        place = self.healthy.volume.fsb_to_byte(record >> 21 & (1 << 52) - 1)
        assert place is not None
        return place

    def change(self, kind: str, start: int, length: int, at: int, new: bytes) -> None:
        """Replace bytes of a structure, and make its checksum right."""
        data = self.replaced.get(start) or self.media.pread(start, length)
        self.replaced[start] = seal(kind, data[:at] + new + data[at + len(new) :])

    def change_inode(self, inode: int, at: int, new: bytes) -> None:
        self.change("inode", self.place(inode), _INODE, at, new)


def _plus_one(bytes_: _Bytes, inode: int, at: int) -> None:
    number = int.from_bytes(bytes_.media.pread(bytes_.place(inode) + at, 8), "big")
    bytes_.change_inode(inode, at, (number + 1).to_bytes(8, "big"))


def _other_blocks(bytes_: _Bytes, made: _Made) -> None:
    _plus_one(bytes_, made.single, _NBLOCKS)


def _other_extents(bytes_: _Bytes, made: _Made) -> None:
    _plus_one(bytes_, made.many, _BIG_NEXTENTS)


def _swapped_extents(bytes_: _Bytes, made: _Made) -> None:
    at = bytes_.place(made.several) + _FORK
    one, other = bytes_.media.pread(at, _RECORD), bytes_.media.pread(at + _RECORD, _RECORD)
    bytes_.change_inode(made.several, _FORK, other + one)


def _with_start(bytes_: _Bytes, inode: int, fsbno: int) -> None:
    record = int.from_bytes(bytes_.media.pread(bytes_.place(inode) + _FORK, _RECORD), "big")
    record = record & ~(((1 << 52) - 1) << 21) | fsbno << 21
    bytes_.change_inode(inode, _FORK, record.to_bytes(_RECORD, "big"))


def _past_the_group(bytes_: _Bytes, made: _Made) -> None:
    sb = bytes_.healthy.volume.sb
    _with_start(bytes_, made.single, sb.agblocks - 1)


def _a_free_block(bytes_: _Bytes, made: _Made) -> None:
    """Make an extent that a free block follows one block longer."""
    for inode, index in ((made.single, 0), *((made.several, index) for index in range(3))):
        start = bytes_.start(inode, index)
        (behind,) = bytes_.healthy.owners(start + 2 * _BLOCK, _BLOCK, paths=False)
        if behind.kind == "free":
            break
    else:
        pytest.fail("no extent is followed by a free block")
    at = _FORK + index * _RECORD
    record = int.from_bytes(bytes_.media.pread(bytes_.place(inode) + at, _RECORD), "big") + 1
    _plus_one(bytes_, inode, _NBLOCKS)
    bytes_.change_inode(inode, at, record.to_bytes(_RECORD, "big"))
    bytes_.asked.append((start, 3 * _BLOCK))


def _blocks_of_another(bytes_: _Bytes, made: _Made) -> None:
    _with_start(bytes_, made.single, bytes_.start(made.several) // _BLOCK)


def _another_format(bytes_: _Bytes, made: _Made) -> None:
    bytes_.change_inode(made.single, _FORMAT, bytes([4]))


def _unused_in_the_btree(bytes_: _Bytes, made: _Made) -> None:
    volume = bytes_.healthy.volume
    assert volume.agi(0).level == 1
    start = volume.agi(0).root * _BLOCK
    tree = bytes_.healthy._finder.tree(0, INOBT)
    for index, record in enumerate(tree.find(0, tree.limit, [])):
        bit = made.single - record[0]
        if 0 <= bit < 64:
            at = 56 + index * _RECORD
            data = bytes_.media.pread(start, _BLOCK)
            mask = int.from_bytes(data[at + 8 : at + 16], "big") | 1 << bit
            bytes_.change("inobt", start, _BLOCK, at + 8, mask.to_bytes(8, "big"))


def _more_inodes_in_the_header(bytes_: _Bytes, made: _Made) -> None:
    del made
    volume = bytes_.healthy.volume
    # The superblock has the sum, which stays the same.
    start = volume.sb.sectsize * _AGI_SECTOR
    for group, more in ((0, -64), (1, 64)):
        count = volume.agi(group).icount + more
        at = start + group * volume.ag_bytes
        bytes_.change("agi", at, volume.sb.sectsize, _AGI_COUNT, count.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (_other_blocks, "it counts 3 blocks, and its maps have 2"),
        (_other_extents, "it counts 301 extents, and its map has 300"),
        (_swapped_extents, "extents out of order"),
        (_past_the_group, "an extent that cannot be"),
        (_a_free_block, "the free-space btree calls it free"),
        (_blocks_of_another, "names 2 owners of"),
        (_another_format, "fork of format 4"),
        (_unused_in_the_btree, "the inode btree says otherwise"),
        (_more_inodes_in_the_header, "its AGI counts"),
    ],
)
def test_each_check_tells_alone(
    made: _Made, lie: Callable[[_Bytes, _Made], None], said: str
) -> None:
    bytes_ = _Bytes(made)
    lie(bytes_, made)
    fs = XfsFilesystem(Overlay(bytes_.media, bytes_.replaced))
    answers = list(fs.owners_many(bytes_.asked, paths=False))
    notes = [note for answer in answers if not answer.complete for note in answer.notes]
    assert any(said in note for note in notes), notes
    healthy = bytes_.healthy.owners_many(bytes_.asked, paths=False)
    for answer, right in zip(answers, healthy, strict=True):
        assert right.complete
        assert answer.owners == right.owners or not answer.complete
    bytes_.healthy.close()
    bytes_.media.close()
