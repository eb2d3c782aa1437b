"""A scan in place of a reverse map that is damaged: whole leaves are lost, or lie."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import questions
from tests.support.answers import answer_json, same
from tests.support.commands import whoseblock as program
from tests.support.expected_rows import Expectation
from tests.support.filled_images import Zoo
from tests.support.image_damage import Overlay, seal
from tests.support.truth import Truth
from tests.support.xfs_images import sparse_copy

from whoseblock.fs.driver import IndexLeaf
from whoseblock.fs.xfs.filesystem import XfsFilesystem
from whoseblock.fs.xfs.owners.rescan import scan_size
from whoseblock.media.device import FileMedia

_HEADER, _RECORD = 56, 24
_RESCANNED = "the reverse map is damaged here"


def _leaves(truth: Truth) -> list[IndexLeaf]:
    with XfsFilesystem(FileMedia(truth.image)) as whole:
        found = list(whole.index_leaves())
    # Of blocks of 64 KiB, each of the two groups has one; how many more depends on the content.
    assert len(found) >= 2
    return found


def _lost(_: bytes) -> bytes:
    return b"damage"


def _without_a_record(block: bytes) -> bytes:
    """Leave out a record in the middle, which the keys of the parent do not tell of."""
    count = int.from_bytes(block[6:8], "big")
    at = _HEADER + count // 2 * _RECORD
    end = _HEADER + count * _RECORD
    kept = block[:at] + block[at + _RECORD : end] + bytes(_RECORD) + block[end:]
    return seal("rmapbt", kept[:6] + (count - 1).to_bytes(2, "big") + kept[8:])


@pytest.mark.parametrize("spoil", [_lost, _without_a_record])
def test_every_owner_is_found_with_each_leaf_spoiled(
    zoo: Zoo, spoil: Callable[[bytes], bytes]
) -> None:
    truth = zoo.filled("64k")
    expectation = Expectation(truth)
    media = FileMedia(truth.image)
    for leaf in _leaves(truth):
        spoiled = spoil(media.pread(leaf.block, truth.superblock.block))
        # Not closed: the medium serves all of them.
        fs = XfsFilesystem(Overlay(media, {leaf.block: spoiled}))
        low = max(leaf.start - fs.block_size, 0)
        question = low, min(leaf.start + leaf.length + fs.block_size, fs.size) - low
        assert not fs.owners(*question, paths=False).complete
        fs.rescans = True
        answer = fs.owners(*question)
        same(answer_json(answer), question, expectation)
        assert any(note.startswith(_RESCANNED) for note in answer.notes)
    media.close()


def test_many_ranges_share_one_scan_and_only_where_the_leaf_is_lost(zoo: Zoo) -> None:
    truth = zoo.filled("1k")
    expectation = Expectation(truth)
    rng = random.Random(1)
    media = FileMedia(truth.image)
    leaves = _leaves(truth)
    leaf = leaves[len(leaves) // 2]
    rows = questions.sample_rows(truth, rng, 100)
    near = [row for row in truth.rows if leaf.start <= row.start < leaf.start + leaf.length]
    rows += rng.sample(near, min(len(near), 60))
    asked = [(row.start, row.length) for row in rows]
    rng.shuffle(asked)
    fs = XfsFilesystem(Overlay(media, {leaf.block + 100: b"damage"}))
    size = scan_size(fs.volume)
    assert size is not None
    for limit in (0, size - 1, size):
        fs.rescan_limit = limit
        fs.reads.clear()
        answers = list(fs.owners_many(asked, paths=False))
        rescanned = [any(note.startswith(_RESCANNED) for note in one.notes) for one in answers]
        assert any(rescanned) == (limit == size)
        assert not all(rescanned)
        assert all(one.complete for one in answers) == (limit == size)
        for question, answer in zip(asked, answers, strict=True):
            if answer.complete:
                same(answer_json(answer), question, expectation, paths=False)
        if limit == size:
            # Each used inode was read once, in pieces.
            assert fs.reads["inode-chunk"] * 64 < 2 * fs.volume.sb.icount
            singly = [fs.owners(*question, paths=False) for question in asked[:5]]
            assert [one.owners for one in singly] == [one.owners for one in answers[:5]]
    media.close()


def test_the_program_scans_in_place_of_a_lost_leaf(zoo: Zoo, tmp_path: Path) -> None:
    truth = zoo.filled("64k")
    image = sparse_copy(truth.image, tmp_path / "damaged.img")
    with XfsFilesystem(FileMedia(image)) as fs:
        leaf = next(iter(fs.index_leaves()))
    with image.open("r+b") as file:
        file.seek(leaf.block + 100)
        file.write(b"damage")
    row = next(row for row in truth.rows if row.kind == "file" and row.start >= leaf.start)
    asked = ("lookup", "--json", "--no-paths", str(image), f"{row.start}+512")
    (unknown,) = json.loads(program(*asked, "--no-scan").stdout)["owners"]
    assert unknown["kind"] == "unknown"
    for more in ((), ("--scan",)):
        answer = json.loads(program(*asked, *more).stdout)
        assert answer["complete"], answer["notes"]
        assert row.inode in {owner["inode"] for owner in answer["owners"]}
    both = program(*asked, "--scan", "--no-scan")
    assert both.returncode == 2
    assert "exclude each other" in both.stderr
