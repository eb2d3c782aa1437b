"""Superblocks of md, compared with the output of mdadm, and damaged."""

import re
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.machine_snapshots import facts, unpacked
from tests.support.tools import run

from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.stack.formats.md import MdSuperblock, read_md_superblock
from whoseblock.stack.images.assembly import make_slice

SECTOR = 512

slow = settings(max_examples=150)


def member_on(media: FileMedia | EmulatedPmem) -> MdSuperblock | None:
    with closing(media):
        return read_md_superblock(media)


MEMBERS = sorted(facts("md")["members"].values())


@pytest.mark.parametrize("name", MEMBERS)
def test_superblocks_agree_with_mdadm(name: str, session_folder: Path) -> None:
    image = unpacked("md-images", session_folder) / name
    printed = run(["mdadm", "--examine", image]).decode()
    member = member_on(FileMedia(image))
    assert member is not None

    def field(title: str) -> str:
        found = re.search(rf"^\s*{title} : (.*)$", printed, re.MULTILINE)
        return found[1].strip() if found else ""

    assert field("Raid Level") == f"raid{member.level}"
    assert int(field("Raid Devices")) == member.members
    assert int(field("Events")) == member.events
    if member.chunk:
        assert field("Chunk Size") == f"{member.chunk // 1024}K"
    if field("Data Offset"):
        assert int(field("Data Offset").split()[0]) * SECTOR == member.start
        assert field("Device Role") == f"Active device {member.role}"
        assert field("Array UUID").replace(":", "") == member.array.hex()


@slow
@given(
    name=st.sampled_from(["raid1-0.img", "raid5la-1.img", "raid5ls-2.img", "raid5old-0.img"]),
    flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 7)), max_size=2),
    lost=st.booleans(),
)
def test_a_damaged_superblock_is_never_read_as_another(
    name: str,
    flips: list[tuple[int, int]],
    lost: bool,  # noqa: FBT001
    session_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    image = unpacked("md-images", session_folder) / name
    right = member_on(FileMedia(image))
    data = bytearray(image.read_bytes())
    places = [at for at in range(0, len(data), SECTOR) if data[at : at + 4] == b"\xfc\x4e\x2b\xa9"]
    (place,) = places
    for at, bit in flips:
        if place + at < len(data):
            data[place + at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged-member.img"
    path.write_bytes(data)
    poison = [ByteRange(place, SECTOR)] if lost else []
    found = member_on(EmulatedPmem(FileMedia(path), poison))
    # Two bits may cancel out in a sum, but only in fields that come to the same.
    if found is not None and len(flips) < 2:
        assert found._replace(role=right.role if right else 0) == right


def test_a_member_in_a_partition_is_not_attributed_to_the_disk(session_folder: Path) -> None:
    image = unpacked("md-images", session_folder) / "raid5la-0.img"
    with closing(FileMedia(image)) as media:
        inner = make_slice("part", media, 0, media.size)
        assert read_md_superblock(inner) == read_md_superblock(media)
