"""Persistent memory: namespaces, where they are in physical memory, and ways to damage it."""

import ctypes
import json
import mmap
import os
import signal
from pathlib import Path
from typing import NamedTuple

from tests.vm.guest.machine import Undo, make_xfs, mount, run, wait_for

__all__ = [
    "HUGE_PAGE",
    "PAGE",
    "Namespace",
    "Namespaces",
    "make_dax",
    "mount_afresh",
    "poison_mapped",
    "poison_pfn",
]

PAGE = 4096
#: What one entry of a page table may map at once.
HUGE_PAGE = 2 << 20
_MADV_HWPOISON = 100
_BUS = Path("/sys/bus/nd/devices")


class Namespace(NamedTuple):
    """A namespace in fsdax mode: its name, its block device, its first byte in physical memory."""

    name: str
    disk: str
    address: int

    @property
    def device(self) -> str:
        return f"/dev/{self.disk}"

    @property
    def bad_blocks(self) -> Path:
        return Path("/sys/block") / self.disk / "badblocks"

    def pfn(self, offset: int) -> int:
        """Return the page frame number of a byte of the device."""
        return (self.address + offset) // PAGE

    def offset(self, pfn: int) -> int:
        """Return the byte of the device where a page frame begins."""
        return pfn * PAGE - self.address


class Namespaces:
    """The NVDIMM, which gives namespaces."""

    def __init__(self) -> None:
        wait_for((_BUS / "region0").exists)
        run(["ndctl", "disable-region", "all"])
        run(["ndctl", "init-labels", "-f", "all"])
        run(["ndctl", "enable-region", "all"])

    def create(self, mebibytes: int = 320) -> Namespace:
        """Make a namespace for a filesystem with DAX."""
        options = ["-m", "fsdax", "-M", "mem", "-s", f"{mebibytes}M"]
        told = json.loads(run(["ndctl", "create-namespace", "-f", *options]))
        disk = told["blockdev"]
        # The device that the disk hangs on is the pfn device of the namespace.
        parent = (Path("/sys/block") / disk / "device").resolve()
        if not parent.name.startswith("pfn"):
            parent = _BUS / parent.name.replace("namespace", "pfn")
        # What was in the same place before is still there: a partition table, a filesystem.
        run(["wipefs", "-qaf", f"/dev/{disk}"])
        run(["blockdev", "--rereadpt", f"/dev/{disk}"])
        return Namespace(told["dev"], disk, int((parent / "resource").read_text(), 16))

    def destroy(self) -> None:
        """Destroy all namespaces, and with them the state of their pages."""
        run(["ndctl", "destroy-namespace", "-f", "all"])


def make_dax(namespaces: Namespaces, undo: Undo, name: str = "mounted") -> tuple[Namespace, Path]:
    """Make a namespace and a filesystem with reflink and DAX on it."""
    namespace = namespaces.create()
    # The stripe has files begin where huge pages do.
    make_xfs(namespace.device, "-m", "reflink=1", "-d", "su=2m,sw=1")
    return namespace, mount(undo, namespace.device, "dax=always", name=name)


def mount_afresh(namespace: Namespace, folder: Path, undo: Undo) -> Path:
    """Mount a filesystem again, so that no inode of a file is in memory."""
    run(["umount", folder])
    folder = mount(undo, namespace.device, "dax=always")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    return folder


def poison_pfn(pfn: int) -> None:
    """Report a failed page of memory to the kernel, as if no process had touched it."""
    # Once, and not again by a buffer that is flushed again.
    inject = os.open("/sys/kernel/debug/hwpoison/corrupt-pfn", os.O_WRONLY)
    try:
        os.write(inject, f"{pfn:#x}".encode())
    except OSError as error:
        # What it could not recover it says in the log, and here.
        print(f"corrupt-pfn {pfn:#x}: {error}")
    finally:
        os.close(inject)


def poison_mapped(path: Path, offset: int, *, mapped: int = PAGE) -> int:
    """Start a process that reads a poisoned page of a mapped file; return its wait status.

    It has ``mapped`` bytes around the page mapped, a multiple of which they begin at.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            _meet_poison(path, offset, mapped)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def _meet_poison(path: Path, offset: int, mapped: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), mapped, offset=offset - offset % mapped)
    page = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + offset % mapped
    mapping[offset % mapped]  # it must have been touched
    if libc.madvise(page, PAGE, _MADV_HWPOISON) != 0:
        os._exit(ctypes.get_errno())
