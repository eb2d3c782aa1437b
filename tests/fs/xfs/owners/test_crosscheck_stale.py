"""Valid blocks that are not the newest: no answer that is called complete is wrong.

A medium that acknowledges a write and loses it leaves such a block: it has the right checksum,
owner and address.  One is put back at a time, then several at once.
"""

import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.support.answers import answer_json
from tests.support.expected_rows import Expectation, normal
from tests.support.image_damage import Block, Overlay
from tests.support.stale_blocks import Aged, make_aged, without_reflink
from tests.support.tools import need_loop_mounts

import whoseblock
from whoseblock.fs.driver import Volume
from whoseblock.media import FileMedia

#: Kinds that answers without paths rest on; the first names must have been changed.
NEEDED = ("rmapbt", "bnobt", "refcountbt", "inobt", "agf", "inode", "bmbt")
KINDS = (
    *NEEDED,
    *("agi", "agfl", "cntbt", "finobt", "directory", "attr leaf", "attr node", "superblock"),
)
#: Blocks of one kind that are put back, each alone.
MOST = 12
#: Rows of an image that are asked about.
QUESTIONS = 1200


@pytest.fixture(scope="module", params=["reflink", "plain"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Case":
    need_loop_mounts()
    image = tmp_path_factory.mktemp("stale") / "aged.img"
    if request.param == "plain":
        return Case(make_aged(image, "plain", without_reflink()))
    return Case(make_aged(image, "reflink"))


class Case:
    """An aged image and the right answers."""

    def __init__(self, aged: Aged) -> None:
        self.stale = aged.stale
        self.image = aged.truth.image
        expectation = Expectation(aged.truth)
        rows = random.Random(1).sample(aged.truth.rows, min(QUESTIONS, len(aged.truth.rows)))
        questions = [(row.start, row.length) for row in rows]
        self.right = {one: expectation.rows(*one, paths=False) for one in questions}

    def with_stale(self, *blocks: Block) -> Iterator[Volume]:
        with closing(FileMedia(self.image)) as media:
            overlay = Overlay(media, {block.start: block.data for block in blocks})
            with whoseblock.open(overlay) as fs:
                yield fs

    def check(self, *blocks: Block, alone: int) -> bool:
        """Ask everything, ``alone`` questions singly too; returns whether anything was noticed."""
        questions = list(self.right)
        for fs in self.with_stale(*blocks):
            answers = dict(zip(questions, fs.owners_many(questions, paths=False), strict=True))
            for question, answer in answers.items():
                rows = [normal(row, paths=False) for row in answer_json(answer)["owners"]]
                if answer.complete:
                    assert rows == self.right[question], _named(blocks)
                else:
                    assert answer.notes
            shown = [question for question in questions if not answers[question].complete]
            rng = random.Random(len(shown))
            some = rng.sample(questions, alone) + rng.sample(shown, min(alone, len(shown)))
            for question in some:
                assert fs.owners(*question, paths=False) == answers[question], _named(blocks)
        return bool(shown)


def _named(blocks: tuple[Block, ...]) -> list[tuple[str, int]]:
    return [(block.kind, block.start) for block in blocks]


def test_the_image_itself_is_consistent(case: Case) -> None:
    assert not case.check(alone=200)
    assert all(case.stale[kind] for kind in NEEDED if kind != "refcountbt" or kind in case.stale)


@pytest.mark.parametrize("kind", KINDS)
def test_one_stale_block(case: Case, kind: str) -> None:
    blocks = case.stale.get(kind, [])
    noticed = [
        case.check(block, alone=4)
        for block in random.Random(kind).sample(blocks, min(MOST, len(blocks)))
    ]
    if kind in ("rmapbt", "agf"):
        assert any(noticed)


def test_several_stale_blocks(case: Case) -> None:
    rng = random.Random(5)
    kinds = [kind for kind in KINDS if kind in case.stale]
    for _ in range(40):
        chosen = [
            rng.choice(case.stale[kind]) for kind in rng.choices(kinds, k=rng.randrange(2, 6))
        ]
        case.check(*{block.start: block for block in chosen}.values(), alone=2)
