"""Many questions together have the same answers as each by itself."""

import random
from pathlib import Path

import pytest
from msgspec import UNSET
from msgspec.structs import replace
from tests.support.btrfs_damage import Base, DamagedMedia, make_base
from tests.support.btrfs_images import SECTOR, make_image
from tests.support.tools import need_loop_mounts

import whoseblock
from whoseblock.fs.arrays import KINDS
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.btrfs.bulk import owners
from whoseblock.media.base import Media

SIZE = 256 << 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Provide an image with files of every kind."""
    need_loop_mounts()
    return make_base(make_image(tmp_path_factory.mktemp("btrfs") / "x.img", SIZE, "-n", "4096"))


def questions(base: Base, seed: int, count: int) -> list[tuple[int, int]]:
    """Return ranges of all sizes, most of which begin in data."""
    rnd = random.Random(seed)
    claims = base.truth.claims
    data = [
        at * SECTOR for at, one in enumerate(claims) if {claim.kind for claim in one} == {"file"}
    ]
    found = []
    for _ in range(count):
        length = rnd.choice((1, 512, SECTOR, SECTOR, 3 * SECTOR, 20_000))
        other = rnd.choice((rnd.randrange(SIZE - length), 64 << 20, (64 << 20) - 512))
        place = rnd.choice(data) if rnd.random() < 0.8 else other
        found.append((min(place, SIZE - length) // 512 * 512, length))
    return found


def without_remarks(answer: Answer) -> Answer:
    """Leave out the remarks: what is read again depends on the order of the questions."""
    remarks = answer.remarks if isinstance(answer.remarks, tuple) else ()
    notes = () if answer.complete else tuple(one for one in answer.notes if one not in remarks)
    return replace(answer, notes=notes, remarks=UNSET)


def check(media: Path | Media, asked: list[tuple[int, int]], *, paths: bool) -> int:
    """Compare the answers, and return how many have one row of a file."""
    with whoseblock.open(media) as fs:
        together = list(fs.owners_many(asked, paths=paths))
    with whoseblock.open(media) as fs:
        singly = [fs.owners(*one, paths=paths) for one in asked]
    assert list(map(without_remarks, together)) == list(map(without_remarks, singly))
    return sum(len(one) == 1 and isinstance(one[0], FileOwner) for one in singly)


@pytest.mark.parametrize("paths", [False, True])
def test_answers_are_those_of_single_questions(
    base: Base, monkeypatch: pytest.MonkeyPatch, *, paths: bool
) -> None:
    monkeypatch.setattr(owners, "_FEW", 1)
    media = DamagedMedia(base.raw, {}, set())
    asked = questions(base, 1, 600)
    assert check(media, asked, paths=paths) > 50
    with whoseblock.open(DamagedMedia(base.raw, {}, set())) as fs:
        columns = fs.owners_of(*zip(*asked, strict=True))
        rows = [
            (number, row.start, row.length, row.kind)
            for number, answer in enumerate(fs.owners_many(asked, paths=False))
            for row in answer
        ]
    kinds = [KINDS[kind] for kind in columns.kind.tolist()]
    numbers = (columns.question.tolist(), columns.start.tolist(), columns.length.tolist())
    assert list(zip(*numbers, kinds, strict=True)) == rows
    assert columns.complete.all()


def test_damage_leads_to_the_same_answers(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_FEW", 1)
    rnd = random.Random(2)
    for seed in range(15):
        edits: dict[int, bytes] = {}
        lost: set[int] = set()
        for places in rnd.sample(base.blocks, 5):
            for place in places[: rnd.randrange(1, 3)]:
                raw = bytearray(base.raw[place : place + base.node_size])
                raw[rnd.randrange(len(raw))] ^= 1 << rnd.randrange(8)
                if rnd.random() < 0.5:
                    edits[place] = bytes(raw)
                else:
                    lost.add(place)
        media = DamagedMedia(base.raw, edits, lost)
        check(media, questions(base, seed, 100), paths=False)
