"""Physical volumes and volume groups, compared with the output of pvs and lvs, and damaged."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.machine_snapshots import FIXTURES, unpacked

from whoseblock.media.device import FileMedia
from whoseblock.media.mapped import MappedMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.stack.formats.lvm import VolumeGroup, read_physical_volume

MIB = 1 << 20
SECTOR = 512

slow = settings(max_examples=150)


def group_on(media: FileMedia | EmulatedPmem | MappedMedia) -> VolumeGroup | None:
    with closing(media):
        volume = read_physical_volume(media)
    return volume.group if volume else None


@pytest.fixture(scope="module")
def second_disk(session_folder: Path) -> Path:
    return unpacked("lvm-images", session_folder) / "lvm-b.img"


def test_segments_agree_with_lvs(second_disk: Path) -> None:
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


def test_physical_volumes_agree_with_pvs(second_disk: Path) -> None:
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
def test_damaged_metadata_is_never_read_as_another_group(
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
