"""Persistent memory in layers, and a filesystem with DAX on top."""

from pathlib import Path
from typing import Final

from tests.vm.guest.machine import Undo, make_xfs, mount, run, wait_for
from tests.vm.guest.pmem import Namespace, Namespaces

__all__ = ["LINEAR_AT", "PARTITION_AT", "in_partition", "on_ext4", "over_linear", "partitioned"]

#: Where the partition begins on the disk, and where device-mapper's device does.
PARTITION_AT: Final = 4096 * 512
LINEAR_AT: Final = 8192 * 512


def partitioned(namespaces: Namespaces) -> Namespace:
    """Make a namespace with one partition."""
    namespace = namespaces.create(352)
    table = f"label: gpt\nstart={PARTITION_AT // 512}, size=655360\n"
    run(["sfdisk", "-q", namespace.device], table.encode())
    return namespace


def in_partition(namespaces: Namespaces, undo: Undo) -> tuple[Namespace, Path]:
    """Make a filesystem in a partition."""
    namespace = partitioned(namespaces)
    partition = f"{namespace.device}p1"
    wait_for(Path(partition).exists)
    # Linux refuses DAX on a filesystem with reflink in a partition.
    make_xfs(partition, "-m", "reflink=0")
    return namespace, mount(undo, partition, "dax=always")


def over_linear(namespaces: Namespaces, undo: Undo) -> tuple[Namespace, Path]:
    """Make a filesystem with reflink on device-mapper's ``linear``."""
    namespace = namespaces.create(352)
    table = f"0 655360 linear {namespace.device} {LINEAR_AT // 512}"
    run(["dmsetup", "create", "linear", "--table", table])
    undo.then("dmsetup", "remove", "linear")
    make_xfs("/dev/mapper/linear", "-m", "reflink=1", "-d", "su=2m,sw=1")
    return namespace, mount(undo, "/dev/mapper/linear", "dax=always")


def on_ext4(namespaces: Namespaces, undo: Undo) -> tuple[Namespace, Path, int]:
    """Make a file on ext4; gives the number of a block that is free, too."""
    namespace = namespaces.create(64)
    run(["mkfs.ext4", "-q", "-b", "4096", namespace.device])
    folder = mount(undo, namespace.device, "dax=always")
    file = folder / "file"
    file.write_bytes(b"4" * (1 << 20))
    run(["sync", "-f", folder])
    unused = int(run(["debugfs", "-R", "ffb 1 9000", namespace.device]).split()[-1])
    return namespace, file, unused
