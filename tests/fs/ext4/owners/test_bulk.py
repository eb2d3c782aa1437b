"""Answers as columns are those of single questions, on damaged images, too."""

import random
from pathlib import Path

import pytest
from msgspec import UNSET
from msgspec.structs import replace
from tests.support.ext4_images import fill, make_image

import whoseblock
from whoseblock.cli.presentation.json_lines import json_chunks
from whoseblock.fs.arrays import OwnerArrays
from whoseblock.fs.base import MetadataOwner, Owner
from whoseblock.fs.ext4.filesystem import Ext4Filesystem
from whoseblock.fs.pieces import Piece, row_of
from whoseblock.ranges import RangeList

MIB = 1 << 20
FORMS = (
    "-t ext4 -b 4096",
    "-t ext4 -b 1024 -O ^flex_bg",
    "-t ext3 -b 1024",
    "-t ext4 -b 4096 -O bigalloc,^has_journal -C 65536",
)


def ranges(rnd: random.Random, size: int, blocks: int) -> list[tuple[int, int]]:
    """Return ranges in bytes, most of them whole blocks."""
    found = []
    for _ in range(500):
        start, length = rnd.randrange(blocks) * size, size
        if rnd.random() < 0.3:
            start, length = start + rnd.randrange(size), rnd.choice((1, 512, size, 9 * size))
        found.append((start, min(length, blocks * size - start)))
    return found


def check(fs: Ext4Filesystem, asked: list[tuple[int, int]]) -> None:
    """Compare both ways to answer."""
    answers = list(fs.owners_many(asked, paths=False))
    starts, lengths = zip(*asked, strict=True)
    arrays = fs.owners_of(starts, lengths)
    rows = [[row_of(piece, None) for piece in pieces] for pieces in pieces_of(arrays, len(asked))]
    assert rows == [list(map(plain, answer)) for answer in answers]
    assert arrays.complete.tolist() == [one.complete for one in answers]
    listed = RangeList.of(asked)
    columns = b"".join(json_chunks(fs.columns_stream(listed)))
    assert columns == b"".join(json_chunks(answers))


def plain(row: Owner) -> Owner:
    """Return a row without the names of fixed metadata, which are in no column."""
    if isinstance(row, MetadataOwner):
        return replace(row, inodes=UNSET, detail=UNSET)
    return row


def pieces_of(arrays: OwnerArrays, count: int) -> list[list[Piece]]:
    found: list[list[Piece]] = [[] for _ in range(count)]
    columns = [getattr(arrays, name).tolist() for name in Piece._fields]
    for number, values in zip(arrays.question.tolist(), zip(*columns, strict=True), strict=True):
        found[number].append(Piece._make(values))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_single_answers(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    fill(folder)
    image = make_image(tmp_path / "disk.img", 64 * MIB, *form.split(), folder=folder)
    rnd = random.Random(form)
    healthy = image.read_bytes()
    for case in range(3):
        raw = bytearray(healthy)
        if case:
            for _ in range(case * 4):
                # Metadata is at the start.
                raw[4096 + rnd.randrange(MIB)] ^= 1 << rnd.randrange(8)
        image.write_bytes(raw)
        with whoseblock.open(image) as fs:
            assert isinstance(fs, Ext4Filesystem)
            check(fs, ranges(rnd, fs.block_size, fs.size // fs.block_size))
            fs.scans = case % 2 == 0
            check(fs, ranges(rnd, fs.block_size, fs.size // fs.block_size))
