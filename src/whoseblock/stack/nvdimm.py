"""Persistent memory: from a physical address to a place on /dev/pmemN.

The layout of /sys/bus/nd/devices is that of the kernel's Documentation/driver-api/nvdimm and
Documentation/ABI/testing/sysfs-bus-nvdimm.  A region is a run of physical addresses, whatever
modules lie behind it: interleaving happens below the addresses, so that a namespace is a part of a
region, and a disk a part of a namespace, by plain subtraction.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from whoseblock.errors import TargetError
from whoseblock.stack.base import PHYSICAL_MEMORY, Ending, Layer, Linear, Segment
from whoseblock.stack.devices import Devices
from whoseblock.stack.host import Host

__all__ = ["Nvdimm"]

#: In a namespace with a memory mode, the info block is in the second 4 KiB (SZ_4K in
#: drivers/nvdimm/pfn_devs.c), and the memory map begins behind it, at 8 KiB.
_INFO_BLOCK: Final = 4096
_INFO_BLOCK_SIZE: Final = 4096
#: What /proc/iomem calls ordinary memory.
_RAM: Final = "System RAM"
#: As far as an x86 processor can address.
_MEMORY_SIZE: Final = 1 << 52


class Nvdimm:
    """The regions and namespaces of a machine, and its physical memory."""

    def __init__(self, host: Host, devices: Devices) -> None:
        self._host = host
        self._devices = devices
        self._folder = host.root / "sys/bus/nd/devices"
        self._namespaces: dict[str, Layer] = {}

    def memory(self) -> Layer:
        """Give the layer of physical memory, as far as it is known to be persistent or not."""
        layer = Layer(
            PHYSICAL_MEMORY,
            _MEMORY_SIZE,
            "memory",
            gap="no memory that the kernel tells of, to us",
            gap_certain=False,
        )
        segments: list[Segment] = []
        regions = [folder for folder in self._entries("region") if self._place(folder)]
        for region in regions:
            segments += self._in_region(region, base=0)
        segments += self._elsewhere(segments)
        layer.segments = segments
        return layer

    def region(self, name: str) -> Layer:
        """Give the layer of a region (``region0``); raises `TargetError`."""
        folder = self._folder / name
        place = self._place(folder)
        if not name.startswith("region") or place is None:
            raise TargetError(f"there is no region {name!r} of persistent memory")
        start, size = place
        layer = Layer(name, size, "region", gap="in no namespace")
        layer.segments = self._in_region(folder, base=start)
        return layer

    def region_of(self, disk: str) -> str | None:
        """Give the region that a disk (``pmem0``) is in; None if it is in none."""
        folder = self._host.device_folder(disk)
        for above in folder.parents if folder else ():
            if above.name.startswith("region"):
                return above.name
        return None

    def _entries(self, kind: str) -> Iterator[Path]:
        for path in sorted(self._folder.glob(f"{kind}[0-9]*")):
            yield path.resolve()

    def _place(self, folder: Path) -> tuple[int, int] | None:
        """Give the physical start and the size of a region or namespace; None if it has none."""
        start, size = self._host.number(folder / "resource"), self._host.number(folder / "size")
        return (start, size) if start is not None and size else None

    def _in_region(self, region: Path, base: int) -> list[Segment]:
        """Cut a region into its namespaces; places count from physical address ``base``."""
        place = self._place(region)
        if place is None:
            return []
        start, size = place
        segments: list[Segment] = []
        taken: list[tuple[int, int]] = []
        for folder in self._entries("namespace"):
            within = self._place(folder)
            if folder.parent != region or within is None:
                continue
            layer = self._namespace(folder, *within)
            segments.append(Linear(within[0] - base, within[1], layer))
            taken.append(within)
        at = start
        for begin, length in [*sorted(taken), (start + size, 0)]:
            if at < begin:
                what = f"{region.name}: in no namespace"
                segments.append(Ending(at - base, begin - at, what))
            at = max(at, begin + length)
        return segments

    def _namespace(self, folder: Path, start: int, size: int) -> Layer:
        name = folder.name
        if name not in self._namespaces:
            layer = Layer(name, size, "namespace", gap="padding of the namespace")
            layer.segments = self._uses(folder, start, size)
            self._namespaces[name] = layer
        return self._namespaces[name]

    def _uses(self, folder: Path, start: int, size: int) -> list[Segment]:
        """Say what a namespace is used for."""
        name = folder.name
        for claim in self._claims(name):
            if claim.name.startswith("pfn") and (place := self._place(claim)):
                return self._fsdax(claim, name, place[0] - start, place[1])
            if claim.name.startswith("dax"):
                chardev = next((path.name for path in claim.glob("dax*") if path.is_dir()), "")
                what = f"device-dax {chardev or claim.name}: no filesystem"
                return [Ending(0, size, what)]
            if claim.name.startswith("btt"):
                what = "sector mode (BTT), whose translation of addresses is not followed"
                return [Ending(0, size, f"{name}: {what}", certain=False)]
        disks = self._disks(folder)
        if disks:
            return [Linear(0, min(size, disk.size), disk) for disk in disks]
        return [Ending(0, size, f"{name}: in use by nobody", certain=False)]

    def _claims(self, namespace: str) -> Iterator[Path]:
        """Give what has claimed a namespace: a pfn, dax or btt device."""
        for kind in ("pfn", "dax", "btt"):
            for folder in self._entries(kind):
                if self._host.text(folder / "namespace") == namespace:
                    yield folder

    def _fsdax(self, pfn: Path, name: str, data: int, size: int) -> list[Segment]:
        """Cut an fsdax namespace: info block, memory map, and the disk from byte ``data`` on."""
        segments: list[Segment] = []
        if data >= _INFO_BLOCK + _INFO_BLOCK_SIZE:
            segments.append(Ending(_INFO_BLOCK, _INFO_BLOCK_SIZE, f"info block of {name}"))
            after = _INFO_BLOCK + _INFO_BLOCK_SIZE
            if self._host.text(pfn / "mode") == "pmem" and after < data:
                segments.append(Ending(after, data - after, f"memory map of {name}"))
        disks = self._disks(pfn)
        segments += [Linear(data, min(size, disk.size), disk) for disk in disks]
        if not disks:
            segments.append(Ending(data, size, f"{name}: in use by nobody", certain=False))
        return segments

    def _disks(self, folder: Path) -> list[Layer]:
        return [self._devices.layer(path.name) for path in sorted((folder / "block").glob("pmem*"))]

    def _elsewhere(self, known: list[Segment]) -> Iterator[Segment]:
        """Name all other memory as /proc/iomem does; its addresses are zero without privilege."""
        lines = (self._host.text(self._host.root / "proc/iomem") or "").splitlines()
        spans = [(segment.start, segment.start + segment.length) for segment in known]
        for line in lines:
            place, _, what = line.partition(" : ")
            first, _, last = place.partition("-")
            if line.startswith(" ") or not what:
                continue
            try:
                start, end = int(first, 16), int(last, 16) + 1
            except ValueError:
                continue
            if 0 <= start < end - 1 <= _MEMORY_SIZE and not any(
                low < end and start < high for low, high in spans
            ):
                ram = what == _RAM
                told = f"{what}: no filesystem" if ram else f"{what}: not followed"
                yield Ending(start, end - start, told, certain=ram)
