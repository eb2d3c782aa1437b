"""The arithmetic of md, device-mapper and LVM against volumes that the kernel itself has written.

In a virtual machine every 4096-byte block of every volume was written through the volume, with the
volume's name and the offset in it.  Where such a tag is found in an image of a member, that offset
of the volume is; nothing of ours is in that truth.
"""

from pathlib import Path

import pytest
from tests.support.machine_snapshots import facts, tags, unpacked

from whoseblock.errors import MediaError
from whoseblock.media.mapped import MappedMedia
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.kernel.devices import BlockDevices
from whoseblock.stack.kernel.host import Host
from whoseblock.target import Target, TargetOptions

ARRAYS = sorted({name.rpartition("-")[0] for name in facts("md")["members"].values()})
BLOCK = 4096


def landed(layer: Layer, start: int) -> list[tuple[str, int] | str]:
    """Return the byte of a volume that a block of a member maps to, None if none is followed."""
    return [
        (found.layer.name, found.offset) if found.layer else found.what
        for found in descend(layer, start, BLOCK)
    ]


def members_of(array: str, folder: Path) -> list[Path]:
    return sorted(unpacked("md-images", folder).glob(f"{array}-?.img"))


@pytest.mark.parametrize("array", ARRAYS)
def test_every_block_of_an_array_is_found_in_images_of_its_members(
    array: str, session_folder: Path
) -> None:
    images = members_of(array, session_folder)
    seen = 0
    options = TargetOptions(members=tuple(map(str, images[1:])))
    with Target(str(images[0]), options) as target:
        for image, layer in zip(images, [target.root, *target.members], strict=True):
            assert layer is not None
            for start, name, offset in tags(image):
                assert name == array
                (found,) = landed(layer, start)
                seen += 1
                if isinstance(found, str):
                    # The member that was thrown out may have old data.
                    assert found == "former member of md/raid5ls: it has 1 events, others have 3"
                    continue
                # Superblocks of version 0.90 have no name for the array but its minor number.
                assert found in ((f"md/{array}", offset), ("md/12", offset))
    assert seen > 900


@pytest.mark.parametrize("array", ARRAYS)
def test_an_array_is_read_through_its_members(array: str, session_folder: Path) -> None:
    images = members_of(array, session_folder)
    options = TargetOptions(members=tuple(map(str, images[1:])))
    with Target(str(images[0]), options) as target:
        assert target.root is not None
        below = next(segment.to for segment in target.root.segments if segment.to)
        media = below.open()
        assert isinstance(media, MappedMedia)
        for start in range(0, media.size - BLOCK + 1, BLOCK):
            copies = [copy for run in media.locate(start, BLOCK) for copy in run.copies]
            if all(copy.media is None for copy in copies):
                # One member was thrown out of its array: what it holds is not believed.
                assert array == facts("md")["degraded"]
                with pytest.raises(MediaError, match="not up to date"):
                    media.pread(start, BLOCK)
            else:
                assert media.pread(start, BLOCK).startswith(f"WB-TAG {array} {start}\n".encode())


@pytest.mark.parametrize("member", sorted(facts("md")["members"]))
def test_the_running_kernel_agrees_about_every_member(member: str, session_folder: Path) -> None:
    known = facts("md")
    image = unpacked("md-images", session_folder) / known["members"][member]
    layer = BlockDevices(Host(unpacked("md", session_folder))).find_layer(member)
    array = next(
        md for md, name in known["arrays"].items() if name == image.name.rpartition("-")[0]
    )
    for start, name, offset in tags(image):
        (found,) = landed(layer, start)
        if name == "raid0z" and isinstance(found, str):
            # sysfs does not tell in which of two ways unequal members are striped.
            assert "layout" in found
        elif name == known["degraded"] and isinstance(found, str):
            assert found == f"faulty member of {array}"
        else:
            assert found == (array, offset)


def test_parity_blocks_are_reported_as_parity(session_folder: Path) -> None:
    images = members_of("raid6ls", session_folder)
    options = TargetOptions(members=tuple(map(str, images[1:])))
    with Target(str(images[0]), options) as target:
        assert target.root is not None
        told = [landed(target.root, 65536 + row * 65536)[0] for row in range(4)]
    # Of four members, each row has two with data, one with P and one with Q.
    assert {word for word in told if isinstance(word, str)} == {
        "parity (P) of md/raid6ls",
        "parity (Q) of md/raid6ls",
    }


def test_every_block_of_logical_volumes_is_found_in_images_of_disks(session_folder: Path) -> None:
    folder = unpacked("lvm-images", session_folder)
    first, second = folder / "lvm-a.img", folder / "lvm-b.img"
    unfollowed = set()
    with Target(str(first), TargetOptions(members=(str(second),))) as target:
        assert target.root is not None
        for image, layer in ((first, target.root), (second, target.members[0])):
            for start, name, offset in tags(image):
                (found,) = landed(layer, start)
                if isinstance(found, str):
                    assert "not followed" in found
                    unfollowed.add(name)
                else:
                    assert found == (name.replace("-", "/"), offset)
    assert unfollowed == set(facts("lvm")["not followed offline"])


def test_device_mapper_leads_from_every_disk_to_every_volume(session_folder: Path) -> None:
    folder = unpacked("lvm-images", session_folder)
    devices = BlockDevices(Host(unpacked("lvm", session_folder)))
    names = set()
    for disk, image in facts("lvm")["disks"].items():
        layer = devices.find_layer(disk)
        for start, name, offset in tags(folder / image):
            assert landed(layer, start) == [(name, offset)]
            names.add(name)
    assert names == {"vg0-linear", "vg0-striped", "vg0-mirrored", "plain"}


def test_device_mapper_targets_that_transform_data_are_not_followed(
    session_folder: Path,
) -> None:
    layer = BlockDevices(Host(unpacked("lvm", session_folder))).find_layer("loop0")
    found = [
        (landing.what, landing.certain)
        for landing in descend(layer, 0, layer.size)
        if landing.layer is None and not landing.certain
    ]
    words = {what for what, _ in found}
    assert any("snapshot, which is not followed" in word for word in words)
    assert any("device-mapper raid, which is not followed" in word for word in words)
    assert "used by no active device-mapper volume" in words


def test_an_encrypted_volume_is_followed_by_its_offset(session_folder: Path) -> None:
    devices = BlockDevices(Host(unpacked("lvm", session_folder)))
    (landing,) = descend(devices.find_layer("loop0p2"), 1048576 + 19 * 1048576 + 12345, 1)
    assert [step.layer for step in landing.via] == ["loop0p2", "vg0-under", "secret"]
    assert landing.offset == 12345
