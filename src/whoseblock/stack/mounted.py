"""Mounted filesystems that have more than one device (proc_pid_mountinfo(5))."""

from collections.abc import Iterator
from typing import Final, Literal

from whoseblock.stack.host import Host

__all__ = ["other_devices"]

_ROLES: Final[dict[str, Literal["log", "realtime"]]] = {"logdev": "log", "rtdev": "realtime"}
#: Fields before the optional ones, which a lone dash ends.
_FIXED: Final = 6


def other_devices(host: Host) -> Iterator[tuple[str, Literal["log", "realtime"], str, str]]:
    """Give the data device, the role, the device and the mount point of each XFS device.

    Devices by the kernel's names.
    """
    for line in (host.text(host.root / "proc/self/mountinfo") or "").splitlines():
        fields = line.split(" ")
        if "-" not in fields[_FIXED:]:
            continue
        end = fields.index("-", _FIXED)
        if fields[end + 1 : end + 2] != ["xfs"] or len(fields) <= end + 3:
            continue
        data = host.device_numbered(fields[2])
        for option in fields[end + 3].split(","):
            key, _, path = option.partition("=")
            if data and key in _ROLES and path:
                yield data, _ROLES[key], path.rpartition("/")[2], fields[4]
