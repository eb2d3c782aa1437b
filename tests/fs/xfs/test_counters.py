"""The counters of the superblock, compared with those of the allocation groups.

The crafted image has an old AGF in one group.  The roots that it names are still whole, and agree
with each other, as a group looks whose btrees lost a level since and whose header lost the write.
"""

import lzma
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.image_damage import Overlay, overwrite, seal
from tests.support.xfs_images import MIB, Geometry, make_image

import whoseblock
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media import EmulatedPmem, FileMedia
from whoseblock.ranges import ByteRange

DEMO = Path(__file__).resolve().parents[3] / "demo" / "image.xfs.xz"
BLOCK, SECTOR, GROUP = 4096, 512, 19200 * 4096
HEADER = 56
#: Fields of the AGF and of the superblock (xfs_format.h).
BNO_ROOT, CNT_ROOT, RMAP_ROOT, FREEBLKS = 16, 20, 24, 52
ICOUNT, FDBLOCKS = 128, 144
FREE, RMAP = struct.Struct(">II"), struct.Struct(">IIQQ")
#: Free blocks that the old btrees are put into.
PLACES = (19_000, 19_001, 19_002)


def moved(
    place: int, kind: str, block: bytes, layout: struct.Struct, records: list[tuple[int, ...]]
) -> bytes:
    """Return a leaf with other records, written for another place."""
    address = (GROUP + place * BLOCK) // SECTOR
    block = overwrite(block, 6, len(records).to_bytes(2, "big"))
    block = overwrite(block, 16, address.to_bytes(8, "big"))
    return seal(kind, overwrite(block, HEADER, b"".join(layout.pack(*one) for one in records)))


class Crafted:
    """The demo image, and in its second group an AGF from before a file was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path.read_bytes()
        sector = self.raw[GROUP + SECTOR : GROUP + 2 * SECTOR]
        bno, cnt, rmap = (
            self.block(int.from_bytes(sector[at : at + 4], "big"))
            for at in (BNO_ROOT, CNT_ROOT, RMAP_ROOT)
        )
        records = list(RMAP.iter_unpack(rmap[HEADER:][: RMAP.size * int.from_bytes(rmap[6:8])]))
        first, count = next(
            (start, blocks)
            for start, blocks, owner, offset in records
            if owner < 1 << 63
            and offset < 1 << 54
            and sum(one[0] < start + blocks and start < one[0] + one[1] for one in records) == 1
        )
        #: What the old btrees call free: the blocks of a file.
        self.question = (GROUP + first * BLOCK, count * BLOCK)
        without = [record for record in records if record[0] != first]
        free = sorted([*self.free(bno), (first, count)])
        by_size = sorted([*self.free(cnt), (first, count)], key=lambda one: one[::-1])
        self.patches = {
            GROUP + place * BLOCK: moved(place, kind, block, layout, kept)
            for place, kind, block, layout, kept in (
                (PLACES[0], "bnobt", bno, FREE, free),
                (PLACES[1], "bnobt", cnt, FREE, by_size),
                (PLACES[2], "rmapbt", rmap, RMAP, without),
            )
        }
        for at, place in zip((BNO_ROOT, CNT_ROOT, RMAP_ROOT), PLACES, strict=True):
            sector = overwrite(sector, at, place.to_bytes(4, "big"))
        freeblks = int.from_bytes(sector[FREEBLKS : FREEBLKS + 4], "big") + count
        sector = overwrite(sector, FREEBLKS, freeblks.to_bytes(4, "big"))
        self.count = count
        self.patches[GROUP + SECTOR] = seal("agf", sector)

    def block(self, agbno: int) -> bytes:
        """Return a block of the group."""
        return self.raw[GROUP + agbno * BLOCK : GROUP + (agbno + 1) * BLOCK]

    def free(self, root: bytes) -> list[tuple[int, ...]]:
        """Return the records of a free-space btree."""
        return list(FREE.iter_unpack(root[HEADER:][: FREE.size * int.from_bytes(root[6:8])]))

    def superblock(self, at: int, add: int) -> dict[int, bytes]:
        """Return the first superblock with another counter."""
        sector = self.raw[:SECTOR]
        number = int.from_bytes(sector[at : at + 8], "big") + add
        return {0: seal("superblock", overwrite(sector, at, number.to_bytes(8, "big")))}

    @contextmanager
    def open(self, patches: dict[int, bytes], *lost: ByteRange) -> Iterator[XfsFilesystem]:
        media = Overlay(FileMedia(self.path), patches)
        with whoseblock.open(EmulatedPmem(media, lost) if lost else media) as fs:
            assert isinstance(fs, XfsFilesystem)
            yield fs


@pytest.fixture(scope="module")
def crafted(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    path = tmp_path_factory.mktemp("counters") / "demo.img"
    path.write_bytes(lzma.decompress(DEMO.read_bytes()))
    return Crafted(path)


def kinds(fs: XfsFilesystem, question: tuple[int, int]) -> set[str]:
    """Return the kinds of rows, the same in every way of asking; no answer is complete."""
    alone = fs.owners(*question, paths=False)
    assert set(fs.owners_many([question] * 60, paths=False)) == {alone}
    arrays = fs.owners_of([question[0]] * 60, [question[1]] * 60)
    assert set(arrays.complete.tolist()) == {alone.complete} == {False}
    (note,) = alone.notes
    assert "the superblock counts" in note
    assert "is old" in note
    return {row.kind for row in alone}


def test_an_old_agf_of_which_the_trees_are_whole(crafted: Crafted) -> None:
    with crafted.open({}) as fs:
        assert {row.kind for row in fs.owners(*crafted.question)} == {"file"}
    with crafted.open(crafted.patches) as fs:
        assert kinds(fs, crafted.question) == {"unknown"}
    # Together with a superblock of the same moment nothing disagrees, as docs/internals says.
    old = crafted.patches | crafted.superblock(FDBLOCKS, crafted.count)
    with crafted.open(old) as fs:
        assert fs.owners(*crafted.question).complete


@pytest.mark.parametrize("at", [FDBLOCKS, ICOUNT])
@pytest.mark.parametrize("add", [1, -1])
def test_an_old_superblock(crafted: Crafted, at: int, add: int) -> None:
    free = (GROUP + PLACES[0] * BLOCK, BLOCK)
    with crafted.open({}) as fs:
        assert [row.kind for row in fs.owners(*free)] == ["free"]
    with crafted.open(crafted.superblock(at, add)) as fs:
        assert kinds(fs, free) == {"unknown"}
        assert kinds(fs, crafted.question) == {"file"}


@pytest.mark.parametrize("sector", [1, 2])
def test_an_unreadable_header_may_count_any_number_of_blocks(crafted: Crafted, sector: int) -> None:
    free = (3 * GROUP - BLOCK, BLOCK)
    lost = ByteRange(GROUP + sector * SECTOR, SECTOR)
    with crafted.open({}, lost) as fs:
        answer = fs.owners(*free)
        assert (answer.complete, answer[0].kind) == (True, "free")
    # As much as fits into its group.
    agf = ByteRange(GROUP + SECTOR, SECTOR)
    with crafted.open(crafted.superblock(FDBLOCKS, 20_000), agf) as fs:
        assert kinds(fs, free) == {"unknown"}


def test_every_header_is_read_once(crafted: Crafted) -> None:
    with crafted.open({}) as fs:
        fs.owners(*crafted.question)
        before = fs.reads["agf"] + fs.reads["agi"]
        # Of the group that is asked about each one, of the other three both together.
        assert before == 5
        for _ in range(3):
            fs.owners(GROUP + PLACES[0] * BLOCK, BLOCK)
        assert fs.reads["agf"] + fs.reads["agi"] == before


def test_many_groups_are_only_read_before_space_is_called_free(tmp_path: Path) -> None:
    geometry = Geometry("many", size=1200 * MIB, groups=75, parent=False)
    image = make_image(tmp_path / "many.img", geometry)
    with whoseblock.open(image) as fs:
        assert isinstance(fs, XfsFilesystem)
        assert fs.owners(0, 4096).complete
        assert fs.reads["agf"] < 5
        answer = fs.owners(fs.size - 4096, 4096)
        assert (answer.complete, answer[0].kind) == (True, "free")
        assert 75 <= fs.reads["agf"] + fs.reads["agi"] <= 77
