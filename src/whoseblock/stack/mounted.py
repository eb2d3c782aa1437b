"""Mounted filesystems that have more than one device."""

from collections.abc import Iterator
from typing import Final, Literal

from whoseblock.media.mounts import read_mounts
from whoseblock.stack.kernel.host import Host

__all__ = ["other_devices"]

_ROLES: Final[dict[str, Literal["log", "realtime"]]] = {"logdev": "log", "rtdev": "realtime"}


def other_devices(host: Host) -> Iterator[tuple[str, Literal["log", "realtime"], str, str]]:
    """Give the data device, the role, the device and the mount point of each XFS device.

    Devices by the kernel's names.
    """
    for mount in read_mounts(host.read_text(host.root / "proc/self/mountinfo") or ""):
        if mount.kind != "xfs":
            continue
        data = host.find_device_by_number(mount.device)
        for option in mount.options:
            key, _, path = option.partition("=")
            if data and key in _ROLES and path:
                yield data, _ROLES[key], path.rpartition("/")[2], mount.point
