"""Metadata of LVM and md, compared with their own tools, and damaged."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.machine_snapshots import FIXTURES, facts, unpacked
from tests.support.tools import run

from whoseblock.media.device import FileMedia
from whoseblock.media.mapped import MappedMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.formats.lvm import VolumeGroup, read_physical_volume
from whoseblock.stack.formats.lvm_text import Section, Value, parse_text
from whoseblock.stack.formats.md import LINEAR, MdSuperblock, read_md_superblock
from whoseblock.stack.images.arrays import ArrayMember, build_array
from whoseblock.stack.images.assembly import make_slice

MIB = 1 << 20
SECTOR = 512

slow = settings(max_examples=150)


# ------------------------------------------------------------------ LVM's text

names = st.from_regex(r"[a-z][a-z0-9_.+-]{0,8}", fullmatch=True)
texts = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
values: st.SearchStrategy[Value] = st.recursive(
    st.integers(-(10**15), 10**15) | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=6
)
sections: st.SearchStrategy[Section] = st.recursive(
    st.dictionaries(names, values, max_size=4),
    lambda inner: st.dictionaries(names, values | inner, max_size=3),
    max_leaves=6,
)


def written(value: "Value | Section") -> str:
    """Write a value as LVM does."""
    if isinstance(value, dict):
        inside = "\n".join(
            f"{name} {written(one)}" if isinstance(one, dict) else f"{name} = {written(one)}"
            for name, one in value.items()
        )
        return f"{{\n{inside}\n}}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


@given(sections)
def test_every_text_is_read_as_it_was_written(section: Section) -> None:
    text = written(section)[1:-1] + "\n# a comment {\n"
    assert parse_text(text) == section


@given(st.text(alphabet='ab1 {}[]=,"\\#\n', max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_text(text)
    except ValueError:
        return


def test_sections_without_end_are_refused() -> None:
    for text in ("a {" * 100_000, "a = " + "[" * 100_000):
        with pytest.raises(ValueError, match=r"nested too deeply|expected a value"):
            parse_text(text)


# ------------------------------------------------------------------ physical volumes


def group_on(media: FileMedia | EmulatedPmem | MappedMedia) -> VolumeGroup | None:
    with closing(media):
        volume = read_physical_volume(media)
    return volume.group if volume else None


def member_on(media: FileMedia | EmulatedPmem) -> MdSuperblock | None:
    with closing(media):
        return read_md_superblock(media)


@pytest.fixture(scope="module")
def second_disk(session_folder: Path) -> Path:
    return unpacked("lvm-images", session_folder) / "lvm-b.img"


def test_segments_are_those_that_lvs_prints(second_disk: Path) -> None:
    group = group_on(FileMedia(second_disk))
    assert group is not None
    report = json.loads((FIXTURES / "lvm-lvs.json").read_text())["report"][0]["seg"]
    printed = {
        (row["lv_name"].strip("[]"), int(row["seg_start_pe"]), int(row["seg_size_pe"]))
        for row in report
        if row["segtype"] in ("linear", "striped")
    }
    ours = {
        (volume.name, segment.first, segment.extents)
        for volume in group.logical
        for segment in volume.segments
        if segment.kind == "striped"
    }
    # LVM itself shows the snapshot's segment under the name of its volume.
    assert printed <= ours
    ranges = {
        one
        for row in report
        for one in row["seg_pe_ranges"].split()
        if row["segtype"] in ("linear", "striped")
    }
    disks = {"pv0": "/dev/loop0p2", "pv1": "/dev/loop1"}
    told = {
        f"{disks[name]}:{first}-{first + segment.extents // len(segment.stripes) - 1}"
        for volume in group.logical
        for segment in volume.segments
        if segment.kind == "striped"
        for name, first in segment.stripes
    }
    assert ranges <= told


def test_physical_volumes_are_those_that_pvs_prints(second_disk: Path) -> None:
    group = group_on(FileMedia(second_disk))
    assert group is not None
    report = json.loads((FIXTURES / "lvm-pvs.json").read_text())["report"][0]["pv"]
    assert {(row["pv_uuid"], int(row["pv_pe_count"])) for row in report} == {
        (volume.uuid, volume.extents) for volume in group.volumes
    }
    assert {volume.start for volume in group.volumes} == {MIB}


@slow
@given(
    lost=st.sets(st.integers(0, 40), max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 64 * SECTOR - 1), st.integers(0, 7)), max_size=3),
)
def test_damaged_metadata_is_never_another_group(
    lost: set[int],
    flips: list[tuple[int, int]],
    second_disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    right = group_on(FileMedia(second_disk))
    head = bytearray(second_disk.read_bytes()[:MIB])
    for at, bit in flips:
        head[at] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged-pv.img"
    path.write_bytes(head)
    group = group_on(EmulatedPmem(FileMedia(path), [ByteRange(at * SECTOR, SECTOR) for at in lost]))
    if group is None:
        # Metadata that cannot be read is said to be so; an area of nothing is no group.
        return
    # An older text in the ring is never taken for the newest.
    assert group == right


# ------------------------------------------------------------------ md

MEMBERS = sorted(facts("md")["members"].values())


@pytest.mark.parametrize("name", MEMBERS)
def test_superblocks_are_those_that_mdadm_prints(name: str, session_folder: Path) -> None:
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
def test_a_damaged_superblock_is_never_another(
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


def test_a_partition_that_holds_a_member_is_told_from_its_disk(session_folder: Path) -> None:
    image = unpacked("md-images", session_folder) / "raid5la-0.img"
    with closing(FileMedia(image)) as media:
        inner = make_slice("part", media, 0, media.size)
        assert read_md_superblock(inner) == read_md_superblock(media)


def test_linear_arrays_follow_one_another(tmp_path: Path) -> None:
    # By hand: the available kernels are built without md's linear personality.
    sizes = [3 * MIB, MIB, 2 * MIB]
    members = []
    for number, size in enumerate(sizes):
        path = tmp_path / f"member-{number}"
        path.write_bytes(bytes(SECTOR) + bytes([number + 1]) * size)
        about = MdSuperblock(
            b"a" * 16, "tail", LINEAR, 0, 0, 3, 0, number, SECTOR, size, 7, "", False, False  # noqa: FBT003
        )  # fmt: skip
        layer = Layer(path.name, size + SECTOR, "disk")
        members.append(ArrayMember(layer, FileMedia(path), about))
    ((array, media),) = build_array(members)
    assert array.size == sum(sizes)
    before = 0
    for number, (member, size) in enumerate(zip(members, sizes, strict=True)):
        (landing,) = descend(member.layer, SECTOR + 100, 10)
        assert (landing.layer, landing.offset) == (array, before + 100)
        (head,) = descend(member.layer, 0, 1)
        assert head.what == "md metadata of md/tail"
        assert media.pread(before + size - 1, 1) == bytes([number + 1])
        before += size
    assert media.pread(3 * MIB - 1, 2) == b"\1\2"


def test_an_array_that_lacks_a_member_of_which_it_needs_the_size(tmp_path: Path) -> None:
    path = tmp_path / "member"
    path.write_bytes(bytes(MIB))
    about = MdSuperblock(
        b"a" * 16, "tail", LINEAR, 0, 0, 2, 0, 0, SECTOR, MIB, 7, "", False, False  # noqa: FBT003
    )  # fmt: skip
    member = ArrayMember(Layer("member", MIB, "disk"), FileMedia(path), about)
    assert list(build_array([member])) == []
    (landing,) = descend(member.layer, 5000, 1)
    assert not landing.certain
    assert "missing" in landing.what
