"""A healthy image, what is known about it, and judging what is said of it once it is damaged."""

import io
import json
import random
from bisect import bisect_right
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace
from tests.support.image_damage import Block, find_metadata

import whoseblock
from whoseblock.cli.presentation.json_lines import json_chunks
from whoseblock.cli.report_owners import _table_chunks
from whoseblock.fs.base import Answer, FileOwner, Free, Paths, Unknown
from whoseblock.fs.driver import Volume
from whoseblock.media import FileMedia
from whoseblock.ranges import ByteRange, merge

__all__ = [
    "Patient",
    "covered",
    "encoded",
    "inode_number",
    "never_free",
    "no_wrong_path",
    "nothing_invented",
]

Question = tuple[int, int]

_QUESTIONS = 240


class Patient:
    """An image before the damage, the questions to ask, and the right answers.

    That the healthy answers are right is for other tests, with other oracles, to show.
    """

    def __init__(self, image: Path) -> None:
        self.image = image
        self.media = FileMedia(image)
        self.metadata: dict[str, list[Block]] = find_metadata(image)
        with self._open() as fs:
            self.questions = _questions(fs, random.Random(image.name))
            answers = list(fs.owners_many(self.questions, paths=False))
            assert all(answer.complete for answer in answers)
            self.answers = dict(zip(self.questions, answers, strict=True))
            inodes = {inode_number(block) for block in self.metadata["inode"]}
            self.paths = {
                ino: found
                for ino, found in fs.paths_many(inodes).items()
                if found.complete and found.paths
            }
            fs.reads.clear()

    def _open(self) -> Volume:
        return whoseblock.open(self.image)

    @cached_property
    def _by_path(self) -> list[tuple[str, int]]:
        return sorted((path, ino) for ino, found in self.paths.items() for path in found.paths)

    def below(self, ino: int, count: int, rng: random.Random) -> list[int]:
        """Return an inode and some of those whose paths lead through it."""
        if ino not in self.paths:
            return []
        prefix = self.paths[ino].paths[0].rstrip("/") + "/"
        lower = [number for path, number in self._by_path if path.startswith(prefix)]
        return [ino, *rng.sample(lower, min(count, len(lower)))]


def inode_number(block: Block) -> int:
    """Return the inode that a unit of metadata belongs to, 0 if to none."""
    places = {"inode": 152, "directory": 40, "bmbt": 56, "attr leaf": 48, "attr node": 48}
    at = places.get(block.kind)
    return int.from_bytes(block.data[at : at + 8], "big") if at else 0


def _questions(fs: Volume, rng: random.Random) -> list[Question]:
    """Ask everything once, then choose rows that between them are of every sort."""
    rows = list(fs.owners(0, fs.size, paths=False))
    sorts: dict[tuple[object, ...], list[Question]] = {}
    for row in rows:
        names = ("kind", "what", "fork", "unwritten", "shared")
        sort = tuple(getattr(row, name, None) for name in names)
        sorts.setdefault(sort, []).append((row.start, row.length))
    share = max(4, _QUESTIONS // 2 // len(sorts))
    chosen = [
        pick for all_of in sorts.values() for pick in rng.sample(all_of, min(share, len(all_of)))
    ]
    asked = set()
    for start, length in chosen:
        first = max(0, start - rng.choice((0, 1, 512, 20_000)))
        asked.add((first, min(length + rng.choice((0, 1, 4096, 50_000)), fs.device_size - first)))
    while len(asked) < _QUESTIONS:
        first = rng.randrange(fs.device_size)
        asked.add((first, min(1 << rng.randrange(22), fs.device_size - first)))
    asked.add((0, fs.device_size))
    return sorted(asked)


def covered(answer: Answer, question: Question) -> None:
    """Assert the form of an answer: clipped, ordered, without a hole."""
    start, length = question
    assert (answer.start, answer.length) == question
    at = start
    before: tuple[int, ...] = ()
    for row in answer:
        assert row.length > 0
        assert start <= row.start
        assert row.start + row.length <= start + length
        place = (row.start, getattr(row, "inode", 0), getattr(row, "file_offset", 0) or 0)
        assert before[:1] <= place[:1], "rows out of order"
        before = place
        assert row.start <= at, f"nothing is said of {at}"
        at = max(at, row.start + row.length)
    assert at == start + length
    if any(row.kind == "unknown" for row in answer):
        assert not answer.complete
    if not answer.complete:
        assert answer.notes


def nothing_invented(answer: Answer, healthy: Answer) -> None:
    """Assert that an answer is the right one, or says that it is incomplete and no wrong word."""
    if answer.owners == healthy.owners:
        return
    assert not answer.complete, "another answer, and not a word about it"
    true = set(healthy)
    # What cannot be read may leave these two open, never the other way round.
    true |= {replace(row, shared=False) for row in true if isinstance(row, FileOwner)}
    true |= {replace(row, what="unknown") for row in true if isinstance(row, FileOwner)}
    for row in answer:
        if not isinstance(row, Unknown | Free):
            assert row in true, f"{row} is not so"
    never_free(answer, healthy)


def never_free(answer: Answer, healthy: Answer) -> None:
    """Assert that what has an owner is not called free."""
    free = merge(ByteRange(row.start, row.length) for row in healthy if row.kind == "free")
    starts = [part.start for part in free]
    for row in answer:
        if row.kind == "free":
            at = bisect_right(starts, row.start) - 1
            assert at >= 0, f"{row} had an owner"
            assert row.start + row.length <= free[at].end, f"{row} had an owner"


def no_wrong_path(found: Paths, healthy: Paths) -> None:
    """Assert that the paths are the right ones, or are said to be incomplete and none is wrong."""
    assert set(found.paths) <= set(healthy.paths)
    assert list(found.paths) == sorted(
        found.paths, key=lambda path: path.encode("utf-8", "surrogateescape")
    )
    if found.paths != healthy.paths or found.unlinked != healthy.unlinked:
        assert not found.complete, "other paths, and not a word about it"
    assert found.complete is not bool(found.notes)


def encoded(answers: list[Answer]) -> None:
    """Assert that the command line can print these answers in both its ways."""
    lines = b"".join(json_chunks(answers)).splitlines()
    for answer, line in zip(answers, lines, strict=True):
        told = json.loads(line)
        assert (told["start"], told["length"]) == (answer.start, answer.length)
        assert len(told["owners"]) == len(answer.owners)
    written = io.BytesIO(b"".join(_table_chunks(answers)))
    assert all(byte >= 0x20 or byte == 0x0A for byte in written.getvalue())
