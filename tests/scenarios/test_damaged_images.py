"""Damaged images: no crash, no hang, no wrong answer.

There are two sorts of damage.  A medium or a bug leaves wrong checksums: then every answer is
right, or is incomplete without a wrong row.  An adversary makes the checksums right again: then
not every lie can be detected.  But a single block can never make used space free, and nothing
crashes, hangs or grows.
"""

import lzma
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.support.damage_judge import (
    Patient,
    covered,
    encoded,
    inode_number,
    never_free,
    no_wrong_path,
    nothing_invented,
)
from tests.support.filled_images import Zoo
from tests.support.image_damage import Block, Overlay, crc_offset, limited, overwrite, seal

import whoseblock
from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer
from whoseblock.fs.driver import Volume
from whoseblock.media import EmulatedPmem, Media
from whoseblock.ranges import ByteRange

DEMO = Path(__file__).resolve().parents[2] / "demo" / "image.xfs.xz"
IMAGES = ["demo", "populated-1k", "populated-1k-noparent", "1k", "1k-noparent"]

#: One case takes milliseconds; this long means that it never comes back.
SECONDS_A_CASE = 10.0
#: Numbers that such a field has at its ends, and on both sides of the ends of other types.
NUMBERS = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31]
NUMBERS += [
    (1 << 32) - 1,
    1 << 53,
    1 << 54,
    1 << 61,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]

_patients: dict[str, Patient] = {}


@pytest.fixture(params=IMAGES)
def patient(request: pytest.FixtureRequest, zoo: Zoo, session_folder: Path) -> Patient:
    name: str = request.param
    if name not in _patients:
        if name == "demo":
            image = session_folder / f"demo-{id(_patients)}.img"
            image.write_bytes(lzma.decompress(DEMO.read_bytes()))
        else:
            image = zoo.any(name).image
        _patients[name] = Patient(image)
    return _patients[name]


def several(examples: int) -> settings:
    """Return the settings of one property, with the number of cases for each image."""
    return settings(
        max_examples=examples,
        # An example that failed is shrunk by few steps: each of them asks hundreds of questions.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


#: Metadata that no path depends on.
NO_PATHS = ("rmapbt", "bnobt", "cntbt", "agfl", "refcountbt", "finobt", "remote value")


class Wound(NamedTuple):
    """The damage of one unit of metadata."""

    block: Block
    data: bytes
    how: str

    def __repr__(self) -> str:
        return f"<{self.block.kind} at {self.block.start}: {self.how}>"


def wound(
    data: st.DataObject, patient: Patient, *, sealed: bool, without: Iterable[str] = ()
) -> Wound:
    """Draw a unit of metadata, every kind of them as often, and spoil it."""
    kind = data.draw(st.sampled_from(sorted(patient.metadata.keys() - set(without))))
    block = data.draw(st.sampled_from(patient.metadata[kind]).map(_Shown))
    size = len(block.data)
    how = data.draw(
        st.sampled_from(["bits", "number", "number", "number", "zero", "noise", "other"])
    )
    if how == "bits":
        new = bytearray(block.data)
        for bit in data.draw(st.lists(st.integers(0, size * 8 - 1), min_size=1, max_size=8)):
            new[bit // 8] ^= 1 << bit % 8
        spoiled = bytes(new)
    elif how == "number":
        spoiled = block.data
        for _ in range(data.draw(st.integers(1, 3))):
            width = data.draw(st.sampled_from([1, 2, 4, 8]))
            # The first bytes of a unit decide more than those that follow.
            last = data.draw(st.sampled_from([min(256, size), size])) // width - 1
            at = data.draw(st.integers(0, last)) * width
            number = data.draw(st.sampled_from(NUMBERS) | st.integers(0, (1 << 64) - 1))
            number %= 1 << 8 * width
            spoiled = overwrite(spoiled, at, number.to_bytes(width, "big"))
            how += f" {number:#x} of {width} bytes at {at}"
    elif how == "zero":
        spoiled = overwrite(
            block.data, 0, bytes(data.draw(st.sampled_from([512, size // 2, size])))
        )
        spoiled = spoiled[:size]
    elif how == "noise":
        first = data.draw(st.sampled_from([0, 56, 176, size // 2]))
        noise = random.Random(data.draw(st.integers(0, 1000))).randbytes(size)
        spoiled = block.data[:first] + noise[first:]
    else:
        # A write that went to the wrong place: sound in itself.
        twin = data.draw(st.sampled_from(patient.metadata[kind]).map(_Shown))
        return Wound(block, twin.data, f"the one of {twin.start}")
    if sealed:
        # What hides the lie best keeps the magic number.
        if data.draw(st.booleans()) and kind != "directory":
            spoiled = overwrite(spoiled, 0, block.data[:4])
        spoiled = seal(kind, spoiled)
    elif spoiled[: crc_offset(kind)] == block.data[: crc_offset(kind)]:
        # By a chance of one in four thousand million the checksum would be right.
        assert spoiled == block.data or seal(kind, spoiled) != spoiled
    return Wound(block, spoiled, how)


class _Shown(Block):
    """A unit of metadata that does not fill the screen when an example is printed."""

    __slots__ = ()

    def __new__(cls, block: Block) -> Self:
        return super().__new__(cls, *block)

    def __repr__(self) -> str:
        return f"<{self.kind} at {self.start}>"


def opened(media: Media) -> Volume | None:
    """Open a damaged image; None if that is refused in words."""
    try:
        return whoseblock.open(media)
    except WhoseblockError:
        return None


class Query(NamedTuple):
    """The lookups of a case on a damaged image."""

    singles: list[tuple[int, int]]
    inodes: list[int]


def choose(data: st.DataObject, patient: Patient, blocks: Sequence[Block]) -> Query:
    """Draw questions: some anywhere, some of the files that the damage may cost their paths."""
    rng = random.Random(data.draw(st.integers(0, 1000)))
    singles = rng.sample(patient.questions, 8)
    known = list(patient.paths)
    inodes = rng.sample(known, min(3, len(known)))
    for block in blocks:
        inodes += patient.below(inode_number(block), 6, rng)
    return Query(singles, inodes)


def ask(fs: Volume, patient: Patient, asked: Query) -> list[Answer]:
    """Ask one by one and all together; the form of every answer is right, and both ways agree."""
    many = list(fs.owners_many(patient.questions, paths=False))
    by_question = dict(zip(patient.questions, many, strict=True))
    for question, answer in by_question.items():
        covered(answer, question)
    # Where the damage shows is where the two ways could part.
    shows = [
        question for question in by_question if by_question[question] != patient.answers[question]
    ]
    for question in (*asked.singles, *shows[:: len(shows) // 10 + 1]):
        alone = fs.owners(*question, paths=False)
        assert alone.owners == by_question[question].owners
        assert alone.complete == by_question[question].complete
    encoded([*many[:: len(many) // 8], *(by_question[question] for question in shows[:20])])
    return many


def bounded(fs: Volume, patient: Patient) -> None:
    """Assert that no more was read than the image could hold, a few times over."""
    blocks = patient.image.stat().st_size // fs.block_size
    assert fs.reads.total() < blocks + 20_000


# ---------------------------------------------------------------------- what breaks by itself


@given(data=st.data())
@several(250)
def test_damage_never_causes_a_wrong_owner(patient: Patient, data: st.DataObject) -> None:
    wounds = [
        wound(data, patient, sealed=False) for _ in range(data.draw(st.sampled_from([1, 1, 2, 5])))
    ]
    media = Overlay(patient.media, {each.block.start: each.data for each in wounds})
    asked = choose(data, patient, [each.block for each in wounds])
    with limited(SECONDS_A_CASE):
        fs = opened(media)
        if fs is None:
            assert any(each.block.kind == "superblock" for each in wounds)
            return
        for answer, healthy in zip(ask(fs, patient, asked), patient.answers.values(), strict=True):
            nothing_invented(answer, healthy)
        bounded(fs, patient)


@given(data=st.data())
@several(120)
def test_damage_never_causes_a_wrong_path(patient: Patient, data: st.DataObject) -> None:
    wounds = [
        wound(data, patient, sealed=False, without=NO_PATHS)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    media = Overlay(patient.media, {each.block.start: each.data for each in wounds})
    asked = choose(data, patient, [each.block for each in wounds])
    with limited(SECONDS_A_CASE):
        fs = opened(media)
        if fs is None:
            return
        for ino, found in fs.paths_many(asked.inodes).items():
            no_wrong_path(found, patient.paths[ino])
        bounded(fs, patient)


@given(data=st.data())
@several(120)
def test_poison_never_causes_a_wrong_answer(patient: Patient, data: st.DataObject) -> None:
    kinds = st.sampled_from(sorted(patient.metadata))
    poison, blocks = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        block = data.draw(
            kinds.flatmap(lambda kind: st.sampled_from(patient.metadata[kind]).map(_Shown))
        )
        sector = data.draw(st.integers(0, len(block.data) // 512 - 1))
        length = data.draw(st.sampled_from([1, 512, 4096, 1 << 16]))
        poison.append(ByteRange(block.start + sector * 512, length))
        blocks.append(block)
    media = EmulatedPmem(Overlay(patient.media, {}), poison)
    asked = choose(data, patient, blocks)
    with limited(SECONDS_A_CASE):
        fs = opened(media)
        if fs is None:
            return
        for answer, healthy in zip(ask(fs, patient, asked), patient.answers.values(), strict=True):
            nothing_invented(answer, healthy)
        for ino, found in fs.paths_many(asked.inodes).items():
            no_wrong_path(found, patient.paths[ino])
        bounded(fs, patient)


# ---------------------------------------------------------------------- forged metadata


@given(data=st.data())
@several(250)
def test_one_forged_block_makes_no_used_space_free(patient: Patient, data: st.DataObject) -> None:
    lie = wound(data, patient, sealed=True)
    media = Overlay(patient.media, {lie.block.start: lie.data})
    asked = choose(data, patient, [lie.block])
    with limited(SECONDS_A_CASE):
        fs = opened(media)
        if fs is None:
            return
        answers = ask(fs, patient, asked)
        if lie.block.kind != "superblock":
            for answer, healthy in zip(answers, patient.answers.values(), strict=True):
                never_free(answer, healthy)
        fs.paths_many(asked.inodes)
        bounded(fs, patient)


@given(data=st.data())
@several(120)
def test_many_forged_blocks_cause_no_crash(patient: Patient, data: st.DataObject) -> None:
    lies = [
        wound(data, patient, sealed=True, without=["superblock"])
        for _ in range(data.draw(st.integers(2, 12)))
    ]
    media = Overlay(patient.media, {lie.block.start: lie.data for lie in lies})
    asked = choose(data, patient, [lie.block for lie in lies])
    with limited(SECONDS_A_CASE):
        fs = opened(media)
        if fs is None:
            return
        ask(fs, patient, asked)
        for ino in (*asked.inodes, lies[0].block.start // 512, (1 << 64) - 1):
            fs.paths(ino)
        bounded(fs, patient)
