"""Mount tables: filesystems with one device, with several, and with a number of their own."""

import os
import stat
from pathlib import Path

import pytest

from whoseblock.media import mounts
from whoseblock.media.mounts import Mount, devices_of, find_mounts, read_mounts

ANONYMOUS = os.makedev(0, 77)


@pytest.fixture
def block_device() -> Path:
    for path in sorted(Path("/dev").iterdir()):
        if stat.S_ISBLK(path.lstat().st_mode):
            return path
    pytest.skip("this machine shows no block device")


def mount(source: str, device: int = ANONYMOUS, kind: str = "manyfs") -> Mount:
    return Mount(30, 1, device, "/", "/srv", kind, source, ("rw",))


def listed(kind: str, folder: Path, *devices: tuple[str, int]) -> Path:
    """Make the folder of sysfs that lists the devices of a filesystem."""
    for name, number in devices:
        place = folder / kind / "uuid" / "devices" / name
        place.mkdir(parents=True)
        (place / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
    return folder


def test_a_filesystem_on_one_device_has_its_number(block_device: Path) -> None:
    number = block_device.stat().st_rdev
    assert devices_of(mount(str(block_device), number, "onefs")) == {number}
    assert devices_of(mount("tmpfs")) == {ANONYMOUS}
    assert devices_of(mount("/dev/none")) == {ANONYMOUS}
    assert devices_of(mount("/dev/null")) == {ANONYMOUS}


def test_all_devices_of_a_filesystem_are_found(
    block_device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, other = block_device.stat().st_rdev, os.makedev(259, 7)
    assert devices_of(mount(str(block_device))) == {ANONYMOUS, number}
    monkeypatch.setattr(
        mounts,
        "_SYS_FS",
        listed("manyfs", tmp_path, (block_device.name, number), ("another", other)),
    )
    assert devices_of(mount(str(block_device))) == {ANONYMOUS, number, other}
    assert devices_of(mount(str(block_device), kind="otherfs")) == {ANONYMOUS, number}
    line = f"30 1 0:77 / /srv rw - manyfs {block_device} rw"
    monkeypatch.setattr(mounts, "_mounts_of", lambda _: list(read_mounts(line)))
    for device in (ANONYMOUS, number, other):
        assert [one.point for one in find_mounts(device)[1]] == ["/srv"]
