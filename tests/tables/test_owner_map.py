"""The origin of an owner map: its host, its filesystem and its disk."""

from pathlib import Path

import pytest

from whoseblock.errors import NotAFilesystemError
from whoseblock.fs.driver import AddressSpace
from whoseblock.lookup import Lookup
from whoseblock.stack.base import Layer
from whoseblock.stack.kernel.host import Host
from whoseblock.tables.owner_map import find_origin


def nothing_there(layer: Layer) -> AddressSpace:
    raise NotAFilesystemError(layer.name)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a snapshot of a machine: two disks with partitions, a volume on one, an array on both.

    The disks are called as SCSI and NVMe name their attributes.
    """
    sys = tmp_path / "sys"
    blocks = sys / "class/block"
    blocks.mkdir(parents=True)
    for disk, part, serial in (
        ("sda", "sda1", "device/serial"),
        ("nvme0n1", "nvme0n1p1", "serial"),
    ):
        folder = sys / "devices" / disk
        for inside in (folder / "device", folder / "slaves", folder / part):
            inside.mkdir(parents=True)
        (folder / "device/model").write_text(f"Model of {disk}  \n")
        (folder / serial).write_text(f" {disk}-42\n")
        (folder / part / "partition").write_text("1\n")
        (blocks / disk).symlink_to(folder)
        (blocks / part).symlink_to(folder / part)
    for name, members in (("dm-0", ["sda1"]), ("dm-1", ["dm-0"]), ("md0", ["sda1", "nvme0n1p1"])):
        folder = sys / "devices" / name
        (folder / "slaves").mkdir(parents=True)
        for member in members:
            (folder / "slaves" / member).symlink_to((blocks / member).resolve())
        (blocks / name).symlink_to(folder)
    for number, name in enumerate(("vg-lv", "crypt")):
        folder = sys / f"devices/dm-{number}/dm"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("layer", "disk"),
    [
        ("sda", "sda"),
        ("sda1", "sda"),
        ("nvme0n1p1", "nvme0n1"),
        ("vg-lv", "sda"),
        ("crypt", "sda"),
        ("md0", ""),
        ("disk.img", ""),
    ],
)
def test_the_disk_of_a_layer(host: Host, layer: str, disk: str) -> None:
    with Lookup(nothing_there) as finder:
        origin = find_origin(finder, Layer(layer, 1 << 20, "disk"), host, "here")
    expected = (f"Model of {disk}", f"{disk}-42") if disk else (None, None)
    assert origin == ("here", None, layer, *expected)
