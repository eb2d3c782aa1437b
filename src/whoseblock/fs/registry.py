"""The table of the filesystems that the program knows.

A driver is registered by one line in `DRIVERS`.  Its module is imported when a medium begins like
its filesystem, or when such a filesystem is mounted.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from whoseblock.fs.driver import Driver
    from whoseblock.fs.monitor import Monitor

__all__ = [
    "DRIVERS",
    "Companion",
    "MonitorRegistration",
    "OtherProgram",
    "Registration",
    "companion_mount_options",
    "companions",
    "driver_of",
    "monitors",
    "titles",
]


class Companion(NamedTuple):
    """Another device that a filesystem may need: its ``role``, and the help for its option.

    ``mount_option`` is the mount option by which the kernel shows its path, "" if there is none.
    """

    role: str
    help: str
    mount_option: str = ""


class OtherProgram(NamedTuple):
    """A program that is not ours: its name, the package of Debian that has it, and what it does."""

    name: str
    package: str
    purpose: str


class Registration(NamedTuple):
    """The facts about a driver that are known before its module is imported.

    ``module`` has the driver as ``DRIVER``.  ``kinds`` are as in mount(8), ``magic`` the bytes that
    identify its superblock with their offset, and ``companions`` the other devices of its volumes.
    ``monitor`` names its source of failures in ``whoseblock watch``; the module ``monitor`` beside
    that of the driver then has the `whoseblock.fs.monitor.Monitor` as ``MONITOR``.  ``programs``
    repair what this program does not.  A filesystem that
    ``spans_devices`` may be on several, which are all alike.
    """

    module: str
    title: str
    kinds: tuple[str, ...]
    magic: tuple[tuple[int, bytes], ...]
    companions: tuple[Companion, ...] = ()
    monitor: str = ""
    programs: tuple[OtherProgram, ...] = ()
    spans_devices: bool = False

    @property
    def driver(self) -> "Driver":
        """The driver, whose module is imported now."""
        driver: Driver = import_module(self.module).DRIVER
        return driver


class MonitorRegistration(NamedTuple):
    """A source of failures of mounted filesystems: its name, and what it watches."""

    name: str
    title: str
    kinds: tuple[str, ...]
    module: str

    @property
    def monitor(self) -> "Monitor":
        """The monitor, whose module is imported now."""
        monitor: Monitor = import_module(self.module).MONITOR
        return monitor


_LOG: Final = Companion("log", "Where an XFS filesystem keeps an external log.", "logdev")
_REALTIME: Final = Companion(
    "realtime", "Where an XFS filesystem keeps its realtime section.", "rtdev"
)

#: One line for each driver.
DRIVERS: Final[list[Registration]] = [
    Registration(
        "whoseblock.fs.xfs.driver",
        "XFS",
        ("xfs",),
        ((0, b"XFSB"),),
        (_LOG, _REALTIME),
        monitor="xfs-health",
        programs=(OtherProgram("xfs_repair", "xfsprogs", "repairs the metadata of XFS"),),
    ),
    Registration(
        "whoseblock.fs.ext4.driver",
        "ext2, ext3 and ext4",
        ("ext4", "ext3", "ext2"),
        ((0x438, b"\x53\xef"),),
        programs=(OtherProgram("e2fsck", "e2fsprogs", "repairs the metadata of ext2, ext3, ext4"),),
    ),
    Registration(
        "whoseblock.fs.btrfs.driver",
        "btrfs",
        ("btrfs",),
        ((0x10040, b"_BHRfS_M"),),
        programs=(OtherProgram("btrfs", "btrfs-progs", "scrubs and repairs btrfs"),),
        spans_devices=True,
    ),
]


def titles() -> str:
    """Return the names of the filesystems, for messages."""
    return ", ".join(one.title for one in DRIVERS)


def monitors() -> Iterator[MonitorRegistration]:
    """Yield the sources of failures that drivers have."""
    for one in DRIVERS:
        if one.monitor:
            module = f"{one.module.rpartition('.')[0]}.monitor"
            yield MonitorRegistration(one.monitor, one.title, one.kinds, module)


def companions() -> Iterator[Companion]:
    """Yield the companions that any filesystem may need."""
    for one in DRIVERS:
        yield from one.companions


def companion_mount_options() -> dict[tuple[str, str], str]:
    """Return the role of a companion for each kind of filesystem and mount option that names it."""
    return {
        (kind, companion.mount_option): companion.role
        for one in DRIVERS
        for kind in one.kinds
        for companion in one.companions
        if companion.mount_option
    }


def driver_of(kind: str) -> "Driver | None":
    """Return the driver for a kind of filesystem as in mount(8), None if there is none."""
    return next((one.driver for one in DRIVERS if kind in one.kinds), None)
