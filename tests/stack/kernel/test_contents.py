"""The block devices that may belong to a filesystem, by sysfs and the database of udev."""

from pathlib import Path

from whoseblock.stack.kernel.contents import devices_in_order
from whoseblock.stack.kernel.host import Host

UUID = "0a1b2c3d-0000-4000-8000-00000000abcd"


def add(root: Path, name: str, number: str, lines: str | None) -> None:
    """Add a device, with its lines in the database of udev."""
    folder = root / "sys/class/block" / name
    folder.mkdir(parents=True)
    (folder / "dev").write_text(f"{number}\n")
    if lines is not None:
        data = root / "run/udev/data"
        data.mkdir(parents=True, exist_ok=True)
        (data / f"b{number}").write_text(f"I:123\nE:ID_MODEL=x\n{lines}")


def test_listed_devices_come_first_and_others_are_left_out(tmp_path: Path) -> None:
    add(tmp_path, "sda", "8:0", None)
    add(tmp_path, "sdb", "8:16", f"E:ID_FS_UUID={UUID}\nE:ID_FS_TYPE=btrfs\n")
    add(tmp_path, "sdc", "8:32", f"E:ID_FS_UUID={UUID}\nE:ID_FS_TYPE=ext4\n")
    add(tmp_path, "sdd", "8:48", f"E:ID_FS_UUID={UUID[::-1]}\nE:ID_FS_TYPE=btrfs\n")
    add(tmp_path, "sde", "8:64", "E:ID_PART_TABLE_TYPE=gpt\n")
    add(tmp_path, "sdf", "8:80", "E:ID_FS_TYPE=crypto_LUKS\n")
    add(tmp_path, "sdg", "8:96", "E:ID_FS_TYPE=ext4\n")
    mounted = tmp_path / f"sys/fs/btrfs/{UUID}/devices"
    mounted.mkdir(parents=True)
    (mounted / "sdg").mkdir()
    found = list(devices_in_order(Host(tmp_path), "btrfs", UUID))
    assert found == ["sdb", "sdg", "sda", "sde"]
