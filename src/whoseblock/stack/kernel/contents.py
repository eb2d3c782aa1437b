"""The filesystems on block devices, as sysfs and the database of udev list them.

Sources: /sys/fs/KIND/UUID/devices of the kernel, and /run/udev/data (ID_FS_TYPE and ID_FS_UUID of
systemd's builtin blkid).  What neither lists may be anything.
"""

from collections.abc import Iterator

from whoseblock.stack.kernel.host import Host

__all__ = ["devices_in_order"]


def devices_in_order(host: Host, kind: str, uuid: str) -> Iterator[str]:
    """Yield the block devices that may belong to a filesystem, the likeliest first.

    Those that are known to have another filesystem are left out.
    """
    likely: list[str] = []
    unknown: list[str] = []
    mounted = host.root / "sys/fs" / kind / uuid / "devices"
    for name in host.block_devices():
        if (mounted / name).exists():
            likely.append(name)
            continue
        listed = _listed(host, name)
        if listed is None:
            unknown.append(name)
        elif listed == (kind, uuid):
            likely.append(name)
    yield from likely
    yield from unknown


def _listed(host: Host, name: str) -> tuple[str, str] | None:
    """Return kind and UUID of the filesystem on a device by udev, None if it lists none."""
    number = host.read_text(host.root / "sys/class/block" / name / "dev")
    text = host.read_text(host.root / f"run/udev/data/b{number}") if number else None
    if not text:
        return None
    fields = dict(
        line.removeprefix("E:").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("E:ID_FS_")
    )
    kind = fields.get("ID_FS_TYPE")
    return (kind, fields.get("ID_FS_UUID", "").lower()) if kind else None
