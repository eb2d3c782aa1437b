"""Disks that contradict themselves or whose state only others know: no certain answer is wrong."""

import struct
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.disk_images import copy_range, partition
from tests.support.filled_images import Zoo
from tests.support.machine_snapshots import tags, unpacked
from tests.support.mounts import loop_device
from tests.support.tools import need_loop_mounts, run
from tests.support.xfs_images import MIB, sparse_copy, sparse_file

from whoseblock.errors import MediaError
from whoseblock.media.device import FileMedia
from whoseblock.ranges import ByteRange
from whoseblock.stack.base import RangeMapping, descend
from whoseblock.target import Target, TargetOptions

SECTOR = 512


@pytest.fixture
def disks(session_folder: Path) -> Path:
    return unpacked("hard-images", session_folder)


def find(images: list[Path], start: int, sector: int | None = None) -> list[RangeMapping]:
    """Return what a block of the first image maps to."""
    options = TargetOptions(members=tuple(map(str, images[1:])), sector=sector)
    with Target(str(images[0]), options) as target:
        assert target.root is not None
        return list(descend(target.root, start, 512))


def changed(image: Path, folder: Path, *patches: tuple[int, bytes]) -> Path:
    """Return a copy of an image with other bytes in some places."""
    copy = sparse_copy(image, folder / image.name)
    with copy.open("r+b") as file:
        for at, data in patches:
            file.seek(at)
            file.write(data)
    return copy


# ------------------------------------------------------------------ LVM


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["mixb"], "LVM physical volume without metadata: name the other disks of its volume"),
        (["mixc"], "LVM physical volume without metadata: name the other disks of its volume"),
    ],
    ids=["no copies", "ignored copies"],
)
def test_a_physical_volume_without_metadata_is_unknown(
    names: list[str], what: str, disks: Path
) -> None:
    images = [disks / f"hard-{name}.img" for name in names]
    (found,) = find(images, 2 * MIB)
    assert not found.certain
    assert found.what.startswith(what)
    assert "--member" in found.what
    (found,) = find([*images, disks / "hard-mixa.img"], 2 * MIB)
    assert found.layer is not None
    assert found.layer.name == "mix/lv"


def test_a_physical_volume_of_no_group_is_certain(tmp_path: Path) -> None:
    need_loop_mounts()
    image = sparse_file(tmp_path / "pv.img", 8 * MIB)
    with loop_device(image) as loop:
        run(["pvcreate", "--config", "devices{use_devicesfile=0}", "-y", loop])
    (found,) = find([image], 2 * MIB)
    assert (found.what, found.certain) == ("LVM physical volume in no volume group", True)


def test_volumes_that_are_not_followed_are_named(disks: Path) -> None:
    images = [disks / f"hard-kind{letter}.img" for letter in "abc"]
    named = set()
    with Target(str(images[0]), TargetOptions(members=tuple(map(str, images[1:])))) as target:
        for image, layer in zip(images, [target.root, *target.members], strict=True):
            assert layer is not None
            for start, name, _ in tags(image):
                (found,) = descend(layer, start, 4096)
                if name != "kind-plain":
                    assert not found.certain
                    assert "not followed" in found.what
                    named.add(found.what.partition(", which")[0])
    assert {one.rpartition(" kind ")[2] for one in named} == {"thin-pool", "raid5", "mirror"}


def text_of(image: Path) -> tuple[int, bytes]:
    """Return where the newest metadata is in an image with one area at 4 KiB, and its text."""
    data = image.read_bytes()[:MIB]
    offset, size, _, _ = struct.unpack_from("<QQII", data, 4096 + 40)
    return 4096 + offset, data[4096 + offset : 4096 + offset + size]


def test_metadata_that_may_be_older_than_a_damaged_copy(disks: Path, tmp_path: Path) -> None:
    first, second = disks / "hard-earlya.img", disks / "hard-earlyb.img"
    at, text = text_of(second)
    seqno = text.index(b"seqno = ") + len("seqno = ")
    newer = changed(second, tmp_path, (at + seqno, b"%d" % (int(text[seqno : seqno + 1]) + 1)))
    # Its number is right, but nothing else of it is believed.
    (found,) = find([first, newer], 14 * MIB)
    assert any("may be newer" in doubt for doubt in found.doubts)
    same = changed(second, tmp_path, (at + text.index(b"creation_host"), b"X"))
    (found,) = find([first, same], 14 * MIB)
    assert found.doubts == ()
    header = changed(second, tmp_path, (4096 + 8, b"X"))
    (found,) = find([first, header], 14 * MIB)
    assert any("may be newer" in doubt for doubt in found.doubts)


# ------------------------------------------------------------------ members of arrays


@pytest.mark.parametrize(("disk", "kind"), [("imsma", "IMSM"), ("ddfa", "DDF")])
def test_members_of_a_controllers_array_are_unknown(disk: str, kind: str, disks: Path) -> None:
    (found,) = find([disks / f"hard-{disk}.img"], 0)
    assert not found.certain
    assert kind in found.what


@pytest.mark.parametrize(("disk", "distance"), [("imsma", 1024), ("ddfa", 512)])
def test_a_lost_sector_with_the_metadata_of_a_controller_is_doubted(
    disk: str, distance: int, disks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without that sector, a member of such an array looks like a plain disk.
    read = FileMedia.pread

    def pread(media: FileMedia, offset: int, length: int) -> bytes:
        lost = media.size - distance
        if offset < lost + 512 and lost < offset + length:
            raise MediaError([ByteRange(lost, 512)])
        return read(media, offset, length)

    monkeypatch.setattr(FileMedia, "pread", pread)
    (found,) = find([disks / f"hard-{disk}.img"], 0)
    (doubt,) = found.doubts
    assert "unreadable where the metadata of an array would be" in doubt


def test_a_former_member_alone_is_doubted(disks: Path) -> None:
    # It does not know that the array went on without it.
    (found,) = find([disks / "hard-kickedb.img"], MIB)
    assert "without its members 0 these may be out of date" in found.doubts[0]
    # The other one knows that it was left alone.
    (found,) = find([disks / "hard-kickeda.img"], MIB)
    assert found.doubts == ()
    (found,) = find([disks / "hard-kickedb.img", disks / "hard-kickeda.img"], MIB)
    assert found.what == "former member of md/kicked: it has 1 events, others have 6"
    assert not found.certain


@pytest.mark.parametrize("disk", ["replaced", "rebuildc"])
def test_what_is_not_rebuilt_yet_is_unknown(disk: str, disks: Path) -> None:
    group = [disks / f"hard-{disk[:-1]}{letter}.img" for letter in "abc"]
    images = [disks / f"hard-{disk}.img", *(one for one in group if disk not in one.name)]
    # The recovery offset of its superblock, which mdadm prints, too.
    (sectors,) = struct.unpack("<Q", images[0].read_bytes()[4096 + 152 : 4096 + 160])
    assert 0 < sectors < 7 * MIB // SECTOR
    (found,) = find(images, MIB + (sectors - 8) * SECTOR)
    assert found.layer is not None or "parity" in found.what
    (found,) = find(images, MIB + sectors * SECTOR)
    assert not found.certain
    assert "has not been rebuilt here yet" in found.what


def test_a_member_is_read_until_its_replacement_is_whole(disks: Path) -> None:
    first, *others = [disks / f"hard-replace{letter}.img" for letter in "abcd"]
    with Target(str(first), TargetOptions(members=tuple(map(str, others)))) as target:
        assert target.root is not None
        array = next(segment.to for segment in target.root.segments if segment.to)
        with closing(array.open()) as media:
            for start in range(0, media.size - 4095, 4096):
                assert media.pread(start, 4096).startswith(f"WB-TAG replace {start}\n".encode())


def with_checksum(superblock: bytes, at: int, fields: bytes) -> bytes:
    """Return a superblock of version 1 with other fields, and its checksum (calc_sb_1_csum)."""
    raw = bytearray(superblock)
    raw[at : at + len(fields)] = fields
    raw[216:220] = bytes(4)
    (devices,) = struct.unpack_from("<I", raw, 220)
    size = 256 + 2 * devices
    words = struct.unpack_from(f"<{size // 4}I", raw)
    total = sum(words) + (struct.unpack_from("<H", raw, size - 2)[0] if size % 4 else 0)
    struct.pack_into("<I", raw, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(raw)


@pytest.mark.parametrize(
    ("at", "fields"),
    [
        (92, struct.pack("<I", 0)),
        (92, struct.pack("<I", 0x7FFFFFFF)),
        (128, struct.pack("<Q", 0)),
        (80, struct.pack("<Q", 1 << 62)),
    ],
    ids=["no members", "2**31 - 1 members", "data offset 0", "component of 2**71"],
)
def test_an_impossible_superblock_is_unknown(
    at: int, fields: bytes, disks: Path, tmp_path: Path
) -> None:
    image = disks / "hard-kickeda.img"
    raw = image.read_bytes()[4096:8192]
    bad = changed(image, tmp_path, (4096, with_checksum(raw, at, fields)))
    (found,) = find([bad], MIB)
    assert not found.certain
    assert found.what.startswith("part of md/kicked: its superblock names")


def test_two_disks_with_the_number_of_one_member(disks: Path, tmp_path: Path) -> None:
    clone = sparse_copy(disks / "hard-kickeda.img", tmp_path / "clone.img")
    (found,) = find([disks / "hard-kickeda.img", clone], MIB)
    assert not found.certain
    assert "the same number" in found.what


# ------------------------------------------------------------------ partition tables


def swap_in(image: Path, start: int, folder: Path) -> None:
    """Put swap space into an image, as what a partition begins with."""
    swap = sparse_file(folder / "swap", MIB)
    run(["mkswap", swap])
    copy_range(swap, 0, image, start, MIB)


def test_a_stale_superblock_of_md_under_a_partition_table(disks: Path, tmp_path: Path) -> None:
    image = sparse_copy(disks / "hard-kickeda.img", tmp_path / "disk.img")
    partition(image, "label: dos\nstart=2048, size=8000, type=83\n")
    (found,) = find([image], MIB)
    assert any("one is a leftover" in doubt for doubt in found.doubts)
    swap_in(image, MIB, tmp_path)
    found, other = find([image], MIB)
    for one in (found, other):
        assert any("one is a leftover" in doubt for doubt in one.doubts)
        assert one.layer is not None
    assert {one.layer.name for one in (found, other) if one.layer} == {"disk.img1", "md/kicked"}


def test_a_partition_table_of_a_mirror_is_no_contradiction(
    session_folder: Path, tmp_path: Path
) -> None:
    # Its superblock is at the end: the array begins where its members do.
    folder = unpacked("md-images", session_folder)
    pair = [sparse_copy(folder / f"raid1-{n}.img", tmp_path / f"raid1-{n}.img") for n in (0, 1)]
    for image in pair:
        partition(image, "label: dos\nstart=63, size=3000, type=83\n")
    (found,) = find(pair, 100 * SECTOR)
    assert [step.layer for step in found.via] == ["raid1-0.img", "md/raid1", "md/raid1p1"]
    assert found.doubts == ()


def test_an_mbr_that_counts_sectors_of_4096_bytes(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    filesystem = zoo.filled("4k").image
    size = -(-filesystem.stat().st_size // 4096)
    image = sparse_file(tmp_path / "disk.img", (size + 600) * 4096)
    with loop_device(image, "--sector-size=4096") as loop:
        run(
            ["sfdisk", "--quiet", "--no-reread", loop],
            stdin=f"label: dos\nstart=500, size={size}\n".encode(),
        )
    # Without content, it is not clear which sectors are counted.
    (found,) = find([image], 600 * SECTOR)
    assert any("512 or of 4096" in doubt and "--sector-size" in doubt for doubt in found.doubts)
    (found,) = find([image], 600 * 4096, 4096)
    assert found.doubts == ()
    copy_range(filesystem, 0, image, 500 * 4096, filesystem.stat().st_size)
    (found,) = find([image], 600 * 4096)
    assert found.layer is not None
    assert (found.layer.name, found.offset) == ("disk.img1", 100 * 4096)
    assert found.doubts == ()
    assert any("sectors of 4096 bytes" in remark for remark in found.remarks)
    (found,) = find([image], 600 * 4096, 512)
    assert found.what == "unpartitioned" or found.offset == 600 * 4096 - 500 * 512


def test_a_partition_of_type_0_holds_a_filesystem(zoo: Zoo, tmp_path: Path) -> None:
    filesystem = zoo.filled("4k").image
    image = sparse_file(tmp_path / "disk.img", 2 * MIB + filesystem.stat().st_size)
    partition(image, "label: dos\nstart=2048, type=83\n")
    copy_range(filesystem, 0, image, MIB, filesystem.stat().st_size)
    with image.open("r+b") as file:
        # sfdisk refuses to write this type.
        file.seek(446 + 4)
        file.write(b"\0")
    (found,) = find([image], 2 * MIB)
    assert found.layer is not None
    assert (found.layer.name, found.offset) == ("disk.img1", MIB)
