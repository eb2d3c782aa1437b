"""Map physical addresses to namespaces and disks of persistent memory (/dev/pmemN).

The layout of /sys/bus/nd/devices is that of the kernel's Documentation/driver-api/nvdimm and
Documentation/ABI/testing/sysfs-bus-nvdimm. A region is a range of physical addresses, whatever
modules back it: interleaving happens below these addresses. So a namespace is a linear part of a
region, and a disk a linear part of a namespace.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from whoseblock.errors import TargetError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.kernel.devices import BlockDevices
from whoseblock.stack.kernel.host import Host

__all__ = ["PersistentMemory"]

#: In fsdax and devdax mode, the info block is in the second 4 KiB (SZ_4K in
#: drivers/nvdimm/pfn_devs.c) of the namespace; the memory map follows at 8 KiB.
_INFO_BLOCK: Final = 4096
_INFO_BLOCK_SIZE: Final = 4096
#: The name of ordinary memory in /proc/iomem.
_RAM: Final = "System RAM"
_CACHED: Final = (
    "a page of ordinary memory may hold changes of a file that are not on its disk yet: the kernel"
    " does not report which file"
)
#: The physical address space of x86, in bytes.
_MEMORY_SIZE: Final = 1 << 52


class PersistentMemory:
    """The regions and namespaces of a machine, and its physical memory."""

    def __init__(self, host: Host, devices: BlockDevices) -> None:
        self._host = host
        self._devices = devices
        self._folder = host.root / "sys/bus/nd/devices"
        self._namespaces: dict[str, Layer] = {}

    def make_memory_layer(self) -> Layer:
        """Return the layer of physical memory, with its persistent and ordinary ranges."""
        layer = Layer(
            PHYSICAL_MEMORY,
            _MEMORY_SIZE,
            "memory",
            gap="no memory listed in /proc/iomem",
            gap_certain=False,
        )
        segments: list[Segment] = []
        regions = [
            folder for folder in self._find_folders("region") if self._physical_range(folder)
        ]
        for region in regions:
            segments += self._cut_region(region, base=0)
        segments += self._other_memory(segments)
        layer.segments = segments
        return layer

    def make_region_layer(self, name: str) -> Layer:
        """Return the layer of a region (``region0``); raises `TargetError`."""
        folder = self._folder / name
        addresses = self._physical_range(folder)
        if not name.startswith("region") or addresses is None:
            raise TargetError(f"no region {name!r} of persistent memory")
        start, size = addresses
        layer = Layer(name, size, "region", gap="in no namespace")
        layer.segments = self._cut_region(folder, base=start)
        return layer

    def find_region_of(self, disk: str) -> str | None:
        """Return the region of a disk (``pmem0``), None if it is in none."""
        folder = self._host.find_device_folder(disk)
        for above in folder.parents if folder else ():
            if above.name.startswith("region"):
                return above.name
        return None

    def _find_folders(self, kind: str) -> Iterator[Path]:
        for path in sorted(self._folder.glob(f"{kind}[0-9]*")):
            yield path.resolve()

    def _physical_range(self, folder: Path) -> tuple[int, int] | None:
        """Return the physical start and the size of a region or namespace, None if unknown."""
        start, size = (
            self._host.read_number(folder / "resource"),
            self._host.read_number(folder / "size"),
        )
        return (start, size) if start is not None and size else None

    def _cut_region(self, region: Path, base: int) -> list[Segment]:
        """Cut a region into its namespaces; offsets count from physical address ``base``."""
        addresses = self._physical_range(region)
        if addresses is None:
            return []
        start, size = addresses
        segments: list[Segment] = []
        ranges: list[tuple[int, int]] = []
        for folder in self._find_folders("namespace"):
            within = self._physical_range(folder)
            if folder.parent != region or within is None:
                continue
            layer = self._namespace_layer(folder, *within)
            segments.append(LinearSegment(within[0] - base, within[1], layer))
            ranges.append(within)
        at = start
        for begin, length in [*sorted(ranges), (start + size, 0)]:
            if at < begin:
                what = f"{region.name}: in no namespace"
                segments.append(UnmappedSegment(at - base, begin - at, what))
            at = max(at, begin + length)
        return segments

    def _namespace_layer(self, folder: Path, start: int, size: int) -> Layer:
        name = folder.name
        if name not in self._namespaces:
            layer = Layer(name, size, "namespace", gap="padding of the namespace")
            layer.segments = self._cut_namespace(folder, start, size)
            self._namespaces[name] = layer
        return self._namespaces[name]

    def _cut_namespace(self, folder: Path, start: int, size: int) -> list[Segment]:
        """Return the segments of a namespace, by its mode."""
        name = folder.name
        for claim in self._find_claims(name):
            if claim.name.startswith("pfn") and (addresses := self._physical_range(claim)):
                return self._cut_fsdax(claim, name, addresses[0] - start, addresses[1])
            if claim.name.startswith("dax"):
                chardev = next((path.name for path in claim.glob("dax*") if path.is_dir()), "")
                what = f"device-dax {chardev or claim.name}: no filesystem"
                return [UnmappedSegment(0, size, what)]
            if claim.name.startswith("btt"):
                what = "sector mode (BTT), whose address translation is not followed"
                return [UnmappedSegment(0, size, f"{name}: {what}", certain=False)]
        disks = self._find_disks(folder)
        if disks:
            return [LinearSegment(0, min(size, disk.size), disk) for disk in disks]
        return [UnmappedSegment(0, size, f"{name}: not in use", certain=False)]

    def _find_claims(self, namespace: str) -> Iterator[Path]:
        """Yield the pfn, dax or btt devices that have claimed a namespace."""
        for kind in ("pfn", "dax", "btt"):
            for folder in self._find_folders(kind):
                if self._host.read_text(folder / "namespace") == namespace:
                    yield folder

    def _cut_fsdax(self, pfn: Path, name: str, data: int, size: int) -> list[Segment]:
        """Cut an fsdax namespace into info block, memory map and disk.

        ``data`` is the offset of the disk in the namespace.
        """
        segments: list[Segment] = []
        if data >= _INFO_BLOCK + _INFO_BLOCK_SIZE:
            segments.append(UnmappedSegment(_INFO_BLOCK, _INFO_BLOCK_SIZE, f"info block of {name}"))
            after = _INFO_BLOCK + _INFO_BLOCK_SIZE
            if self._host.read_text(pfn / "mode") == "pmem" and after < data:
                segments.append(UnmappedSegment(after, data - after, f"memory map of {name}"))
        disks = self._find_disks(pfn)
        segments += [LinearSegment(data, min(size, disk.size), disk) for disk in disks]
        if not disks:
            segments.append(UnmappedSegment(data, size, f"{name}: not in use", certain=False))
        return segments

    def _find_disks(self, folder: Path) -> list[Layer]:
        return [
            self._devices.find_layer(path.name) for path in sorted((folder / "block").glob("pmem*"))
        ]

    def _other_memory(self, known: list[Segment]) -> Iterator[Segment]:
        """Yield the other memory of /proc/iomem.

        Without privileges its addresses are zero.
        """
        lines = (self._host.read_text(self._host.root / "proc/iomem") or "").splitlines()
        spans = [(segment.start, segment.start + segment.length) for segment in known]
        for line in lines:
            addresses, _, what = line.partition(" : ")
            first, _, last = addresses.partition("-")
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
                use = f"{what}: no filesystem" if ram else f"{what}: not followed"
                doubt = _CACHED if ram else ""
                yield UnmappedSegment(start, end - start, use, certain=ram, doubt=doubt)
