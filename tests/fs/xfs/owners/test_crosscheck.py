"""One forged record in each structure: the answer names both sides, singly and in bulk."""

import lzma
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from tests.support.image_damage import Block, Overlay, find_metadata, overwrite, seal

import whoseblock
from whoseblock.media import EmulatedPmem, FileMedia
from whoseblock.ranges import ByteRange

DEMO = Path(__file__).resolve().parents[4] / "demo" / "image.xfs.xz"
BLOCK = 4096
HEADER = 56
STATIC, LOG, AG, INODE_BTREES, INODES, REFCOUNT_BTREE, STAGING = (
    (1 << 64) - number for number in range(3, 10)
)
UNWRITTEN = 1 << 61


class Found(NamedTuple):
    """A record: its block, where in it, and its fields."""

    block: Block
    at: int
    fields: tuple[int, ...]
    group: int


class Image:
    """The demo image, and the records of its trees."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = find_metadata(path)
        self.group_size = 19200 * BLOCK

    def records(self, kind: str, code: str) -> list[Found]:
        layout = struct.Struct(code)
        found = []
        for block in self.metadata[kind]:
            count = int.from_bytes(block.data[6:8], "big")
            for index in range(count):
                at = HEADER + index * layout.size
                fields = layout.unpack_from(block.data, at)
                found.append(Found(block, at, fields, block.start // self.group_size))
        return found

    def data(self) -> Found:
        """Return a record of file data that no other file shares."""
        records = self.records("rmapbt", ">IIQQ")
        for record in records:
            start, count, owner, offset = record.fields
            others = [
                other
                for other in records
                if other.group == record.group
                and other.fields[0] < start + count
                and start < other.fields[0] + other.fields[1]
            ]
            if owner < 1 << 63 and offset < 1 << 61 and len(others) == 1:
                return record
        raise LookupError("no such record")

    def notes(
        self,
        record: Found,
        fields: tuple[int, ...],
        code: str,
        others: Mapping[int, bytes] = MappingProxyType({}),
    ) -> list[str]:
        """Forge a record, and other blocks.

        Returns the notes about its blocks, the same singly and in bulk.
        """
        new = overwrite(record.block.data, record.at, struct.pack(code, *fields))
        patch = {record.block.start: seal(record.block.kind, new), **others}
        start = record.group * self.group_size + record.fields[0] * BLOCK
        question = (start, record.fields[1] * BLOCK)
        with whoseblock.open(Overlay(FileMedia(self.path), patch)) as fs:
            alone = fs.owners(*question, paths=False)
            assert set(fs.owners_many([question] * 50, paths=False)) == {alone}
            arrays = fs.owners_of([question[0]], [question[1]])
            assert arrays.complete.tolist() == [alone.complete]
        assert alone.complete is not bool(alone.notes)
        return list(alone.notes)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("crosscheck") / "demo.img"
    path.write_bytes(lzma.decompress(DEMO.read_bytes()))
    return Image(path)


@pytest.mark.parametrize(
    ("forge", "says"),
    [
        (lambda owner, offset: (owner + 1, offset), "extent map"),
        (lambda owner, offset: (owner, offset + 1), "extent map"),
        (lambda owner, offset: (owner, offset | UNWRITTEN), "extent map"),
        (lambda _owner, _offset: (AG, 0), "rmap btrees and the AGFL have not"),
        (lambda _owner, _offset: (INODE_BTREES, 0), "the inode btrees have not"),
        (lambda _owner, _offset: (REFCOUNT_BTREE, 0), "the refcount btree has not"),
        (lambda _owner, _offset: (INODES, 0), "the inode btree has not"),
        (lambda _owner, _offset: (LOG, 0), "the superblock has it elsewhere"),
        (lambda _owner, _offset: (STATIC, 0), "where there are none"),
        (lambda _owner, _offset: (STAGING, 0), "staged for copy-on-write"),
    ],
)
def test_an_owner_that_does_not_map_the_block(
    image: Image, forge: Callable[[int, int], tuple[int, int]], says: str
) -> None:
    record = image.data()
    start, count, owner, offset = record.fields
    assert image.notes(record, record.fields, ">IIQQ") == []
    notes = image.notes(record, (start, count, *forge(owner, offset)), ">IIQQ")
    assert any("rmap btree" in note and says in note for note in notes) or "inode" in notes[0]


@pytest.mark.parametrize("kind", ["bnobt", "cntbt", "rmapbt", "refcountbt"])
def test_a_block_that_was_of_a_btree(image: Image, kind: str) -> None:
    # A file that owns it by now has not overwritten it.
    record = image.data()
    start, count, _, _ = record.fields
    at = record.group * image.group_size + start * BLOCK
    old = next(block for block in image.metadata[kind] if block.start // image.group_size == 0)
    moved = seal(kind, overwrite(old.data, 16, (at // 512).to_bytes(8, "big")))
    owner = REFCOUNT_BTREE if kind == "refcountbt" else AG
    notes = image.notes(record, (start, count, owner, 0), ">IIQQ", {at: moved})
    assert any("rmap btree has btree blocks" in note for note in notes)


@pytest.mark.parametrize("more", [1, -1])
def test_sharers_that_are_not_counted(image: Image, more: int) -> None:
    record = next(one for one in image.records("refcountbt", ">III") if one.fields[2] > 1)
    start, count, owners = record.fields
    notes = image.notes(record, (start, count, owners + more), ">III")
    assert len(notes) == 1
    assert f"the rmap btree names {owners} owners of" in notes[0]
    assert f"the refcount btree counts {owners + more}" in notes[0]


def test_a_sharer_twice(image: Image) -> None:
    records = image.records("rmapbt", ">IIQQ")
    one, other = next(
        (one, other)
        for one, other in pairwise(records)
        if one.group == other.group and one.fields[0] == other.fields[0]
    )
    assert image.notes(other, one.fields, ">IIQQ")


def test_free_space_that_is_not_in_both_trees(image: Image) -> None:
    record = max(image.records("bnobt", ">II"), key=lambda found: found.fields[1])
    start, count = record.fields
    notes = image.notes(record, (start - 1, count), ">II")
    assert any("by place and by size disagree" in note for note in notes)


def test_free_space_that_the_header_does_not_count(image: Image) -> None:
    record = max(image.records("bnobt", ">II"), key=lambda found: found.fields[1])
    start, count = record.fields
    notes = image.notes(record, (start, count - 1), ">II")
    assert any("not as many free blocks as the header" in note for note in notes)


def test_free_space_of_which_one_tree_is_unreadable(image: Image) -> None:
    free = max(image.records("bnobt", ">II"), key=lambda found: found.fields[1])
    start = free.group * image.group_size + free.fields[0] * BLOCK
    # The first group has the root of the btree by size in its third block.
    by_size = ByteRange(free.group * image.group_size + 2 * BLOCK, BLOCK)
    media = EmulatedPmem(FileMedia(image.path), poison=[by_size])
    with whoseblock.open(media) as fs:
        together = list(fs.owners_many([(start, BLOCK)] * 60, paths=False))
        assert {answer.complete for answer in together} == {True}
        assert fs.owners(start, BLOCK, paths=False) == together[0]
        assert together[0][0].kind == "free"


def test_an_empty_leaf_with_a_sibling_is_detected_each_time(image: Image) -> None:
    root = next(block for block in image.metadata["refcountbt"] if block.data[6:8] == b"\0\0")
    forged = seal("refcountbt", overwrite(root.data, 8, (17).to_bytes(4, "big")))
    group = root.start // image.group_size * image.group_size
    with whoseblock.open(Overlay(FileMedia(image.path), {root.start: forged})) as fs:
        answers = [fs.owners(group, BLOCK, paths=False) for _ in range(3)]
        answers += fs.owners_many([(group, BLOCK)] * 60, paths=False)
        assert {answer.complete for answer in answers} == {False}
        assert len(set(answers)) == 1


@pytest.mark.parametrize("form", [2, 3, 5])
@pytest.mark.parametrize("forkoff", [0, 1, 42, 255])
def test_forks_that_reach_past_their_inode(image: Image, form: int, forkoff: int) -> None:
    # The forms of both forks, where the second one begins, and how many extents they have.
    edits = {5: bytes([form]), 82: bytes([forkoff, form]), 76: b"\0\0\0\x7f\0\x7f", 24: b"\0" * 7}
    patches = {}
    for block in image.metadata["inode"]:
        data = block.data
        for at, new in edits.items():
            data = overwrite(data, at, new)
        patches[block.start] = seal("inode", overwrite(data, 31, b"\x7f"))
    with whoseblock.open(Overlay(FileMedia(image.path), patches)) as fs:
        questions = [(start, 1 << 20) for start in range(0, fs.size - (1 << 20), 1 << 20)]
        together = list(fs.owners_many(questions, paths=False))
        assert [fs.owners(*question, paths=False) for question in questions] == together
        assert not all(answer.complete for answer in together)
