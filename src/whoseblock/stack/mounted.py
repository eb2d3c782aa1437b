"""Mounted filesystems that have more than one device."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from whoseblock.media.mounts import read_mounts
from whoseblock.stack.kernel.host import Host

__all__ = ["CompanionDevice", "companion_devices"]


class CompanionDevice(NamedTuple):
    """A companion of a mounted filesystem; devices are as the kernel names them.

    ``device`` has the ``role`` for the filesystem of ``kind`` on ``data``, mounted at ``point``.
    """

    data: str
    kind: str
    role: str
    device: str
    point: str


def companion_devices(
    host: Host, roles: Mapping[tuple[str, str], str]
) -> Iterator[CompanionDevice]:
    """Yield the companions of mounted filesystems that their mount options name.

    ``roles`` has the role for each kind of filesystem and mount option.
    """
    for mount in read_mounts(host.read_text(host.root / "proc/self/mountinfo") or ""):
        data = host.find_device_by_number(mount.device)
        for option in mount.options:
            key, _, path = option.partition("=")
            role = roles.get((mount.kind, key))
            if data and role and path:
                device = path.rpartition("/")[2]
                yield CompanionDevice(data, mount.kind, role, device, mount.point)
