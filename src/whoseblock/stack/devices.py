"""Block devices as the kernel has them: partitions, device-mapper, md, swap.

What is made of a device stands in its ``holders`` in sysfs, where exactly in tables and attributes
of these (Documentation/admin-guide/md.rst for md's).
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from whoseblock.errors import TargetError, UnsupportedError
from whoseblock.media.device import FileMedia
from whoseblock.stack.base import Ending, Layer, Linear, Segment
from whoseblock.stack.dm import dm_table, segments_on
from whoseblock.stack.host import SECTOR, Host
from whoseblock.stack.loops import backing_file
from whoseblock.stack.md import LINEAR, striping_of
from whoseblock.stack.raid import MemberSegment

__all__ = ["Devices"]

_KIB = 1024


class Devices:
    """The layers of a machine's block devices, each made once."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._layers: dict[str, Layer] = {}

    def layer(self, name: str) -> Layer:
        """Give the layer of the device that the kernel calls ``name``; raises `TargetError`."""
        layer = self._layers.get(name)
        if layer is None:
            folder = self.host.device_folder(name)
            if folder is None:
                raise TargetError(
                    f"there is no block device {name!r}",
                    hint="name it as /sys/class/block does: sda2, pmem0, dm-0",
                )
            layer = self._layers[name] = self._make(name, folder)
            layer.segments = self._segments(name, folder, layer.size)
        return layer

    def _make(self, name: str, folder: Path) -> Layer:
        size = (self.host.number(folder / "size") or 0) * SECTOR
        opener = partial(FileMedia, f"/dev/{name}") if self.host.live else None
        shown, kind, gap = name, "disk", "unpartitioned"
        if (folder / "partition").exists():
            kind = "partition"
        elif volume := self.host.text(folder / "dm/name"):
            shown, kind = volume, self._kind_of_volume(folder)
        elif (folder / "md").is_dir():
            kind = f"md {self.host.text(folder / 'md/level') or ''}".strip()
        elif (folder / "loop").is_dir():
            backing = backing_file(self.host, name)
            kind = f"loop device over {backing.path}" if backing else "loop device"
        major, _, minor = (self.host.text(folder / "dev") or "").partition(":")
        known = self.host.live and major.isdecimal() and minor.isdecimal()
        device = os.makedev(int(major), int(minor)) if known else None
        return Layer(shown, size, kind, open_media=opener, gap=gap, device=device)

    def _kind_of_volume(self, folder: Path) -> str:
        uuid = self.host.text(folder / "dm/uuid") or ""
        prefixes = {"LVM-": "logical volume", "CRYPT-": "encrypted volume", "mpath-": "multipath"}
        return next(
            (kind for prefix, kind in prefixes.items() if uuid.startswith(prefix)),
            "device-mapper volume",
        )

    def _segments(self, name: str, folder: Path, size: int) -> list[Segment]:
        segments: list[Segment] = []
        for inside in sorted(folder.iterdir()):
            if (inside / "partition").exists():
                start = (self.host.number(inside / "start") or 0) * SECTOR
                part = self.layer(inside.name)
                segments.append(Linear(start, part.size, part))
        for holder in sorted(path.name for path in (folder / "holders").glob("*")):
            segments += self._held(name, folder, size, holder)
        layer = self._layers[name]
        if any((folder / "holders").glob("dm-*")):
            # An inactive volume has no table, and still has its bytes.
            layer.gap, layer.gap_certain = "used by no active device-mapper volume", False
        elif array := next((folder / "holders").glob("md*"), None):
            layer.gap = f"md metadata of {array.name}"
        if not segments and name in self._swaps():
            segments.append(Ending(0, size, "swap space"))
        return segments

    def _held(self, name: str, folder: Path, size: int, holder: str) -> list[Segment]:
        """Say what a holder makes of a device."""
        held_by = self.host.device_folder(holder)
        if held_by is None:
            return [Ending(0, size, f"used by {holder}, which is not followed", certain=False)]
        try:
            if (held_by / "dm").is_dir():
                number = self.host.text(folder / "dev") or ""
                targets = dm_table(self.host, holder)
                return list(segments_on(number, size, self.layer(holder), targets))
            if (held_by / "md").is_dir():
                return list(self._member(name, held_by, self.layer(holder)))
        except UnsupportedError as error:
            what = f"part of {self.layer(holder).name}: {error}"
            return [Ending(0, size, what, certain=False)]
        return [Ending(0, size, f"used by {holder}, which is not followed", certain=False)]

    def _member(self, name: str, array: Path, layer: Layer) -> Iterator[Segment]:
        """Cut a member of an array; raises `UnsupportedError`."""
        about = array / "md"
        own = about / f"dev-{name}"
        slot, offset = self.host.number(own / "slot"), self.host.number(own / "offset")
        if offset is None:
            raise UnsupportedError("the kernel does not say where its data begins")
        start = offset * SECTOR
        if slot is None:
            state = self.host.text(own / "state") or "spare"
            length = (self.host.number(own / "size") or 0) * _KIB
            yield Ending(start, max(length, SECTOR), f"{state} member of {layer.name}")
            return
        if (self.host.text(about / "reshape_position") or "none") != "none":
            raise UnsupportedError("it is being reshaped")
        level = self.host.text(about / "level") or ""
        number = LINEAR if level == "linear" else int(level[4:]) if level[4:].isdecimal() else 99
        chunk = self.host.number(about / "chunk_size") or 0
        sizes = self._sizes(about, number, chunk)
        if number == LINEAR:
            yield Linear(start, sizes[slot], layer, sum(sizes[:slot]))
            return
        layout = self.host.number(about / "layout") or 0
        striping, _ = striping_of(number, layout, chunk, sizes)
        yield MemberSegment(start, sizes[slot], layer, striping, slot)

    def _sizes(self, about: Path, level: int, chunk: int) -> list[int]:
        """Give how many bytes of each member hold data; raises `UnsupportedError`."""
        members = self.host.number(about / "raid_disks") or 0
        if level in (0, LINEAR):
            sizes = [self.host.number(about / f"rd{at}/size") for at in range(members)]
        else:
            sizes = [self.host.number(about / "component_size")] * members
        if None in sizes or not sizes:
            raise UnsupportedError("the kernel does not say how large its members are")
        known = [(size or 0) * _KIB for size in sizes]
        return [size - size % chunk if chunk and level != 1 else size for size in known]

    def _swaps(self) -> set[str]:
        """Give the devices that the kernel swaps to (proc_swaps(5))."""
        lines = (self.host.text(self.host.root / "proc/swaps") or "").splitlines()[1:]
        return {line.split()[0].removeprefix("/dev/") for line in lines if line.strip()}
