"""Build layers from the kernel's view of block devices: partitions, device-mapper, md, swap.

sysfs lists the users of a device in ``holders``. Tables and attributes of the holders say which
bytes each of them uses (Documentation/admin-guide/md.rst for md's).
"""

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from whoseblock.errors import TargetError, UnsupportedError
from whoseblock.media.device import FileMedia
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.formats.md import (
    LINEAR,
    MdSuperblock,
    make_striping,
    read_md_superblock,
)
from whoseblock.stack.kernel.host import SECTOR, Host

__all__ = ["ENCRYPTED_VOLUME", "BlockDevices"]

#: The kind of the layers that cryptsetup opened.
ENCRYPTED_VOLUME: Final = "encrypted volume"
_KIB = 1024


class BlockDevices:
    """The layers of a machine's block devices, each created once."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._layers: dict[str, Layer] = {}

    def find_layer(self, name: str) -> Layer:
        """Return the layer of the device with a kernel name; raises `TargetError`."""
        layer = self._layers.get(name)
        if layer is None:
            folder = self.host.find_device_folder(name)
            if folder is None:
                raise TargetError(
                    f"no block device {name!r}",
                    hint="use a name from /sys/class/block, such as sda2, pmem0 or dm-0",
                )
            layer = self._layers[name] = self._make_layer(name, folder)
            layer.segments = self._find_segments(name, folder, layer.size)
        return layer

    def _make_layer(self, name: str, folder: Path) -> Layer:
        size = (self.host.read_number(folder / "size") or 0) * SECTOR
        opener = partial(FileMedia, f"/dev/{name}") if self.host.live else None
        layer_name, kind, gap = name, "disk", "unpartitioned"
        if (folder / "partition").exists():
            kind = "partition"
        elif volume := self.host.read_text(folder / "dm/name"):
            layer_name, kind = volume, self._kind_of_volume(folder)
        elif (folder / "md").is_dir():
            kind = f"md {self.host.read_text(folder / 'md/level') or ''}".strip()
        elif (folder / "loop").is_dir():
            from whoseblock.stack.kernel.loops import find_backing_file

            backing = find_backing_file(self.host, name)
            kind = f"loop device over {backing.path}" if backing else "loop device"
        major, _, minor = (self.host.read_text(folder / "dev") or "").partition(":")
        known = self.host.live and major.isdecimal() and minor.isdecimal()
        device = os.makedev(int(major), int(minor)) if known else None
        return Layer(layer_name, size, kind, open_media=opener, gap=gap, device=device)

    def _kind_of_volume(self, folder: Path) -> str:
        uuid = self.host.read_text(folder / "dm/uuid") or ""
        prefixes = {"LVM-": "logical volume", "CRYPT-": ENCRYPTED_VOLUME, "mpath-": "multipath"}
        return next(
            (kind for prefix, kind in prefixes.items() if uuid.startswith(prefix)),
            "device-mapper volume",
        )

    def _find_segments(self, name: str, folder: Path, size: int) -> list[Segment]:
        segments: list[Segment] = []
        for inside in sorted(folder.iterdir()):
            if (inside / "partition").exists():
                start = (self.host.read_number(inside / "start") or 0) * SECTOR
                part = self.find_layer(inside.name)
                segments.append(LinearSegment(start, part.size, part))
        for holder in sorted(path.name for path in (folder / "holders").glob("*")):
            segments += self._holder_segments(name, folder, size, holder)
        layer = self._layers[name]
        if any((folder / "holders").glob("dm-*")):
            # An inactive volume has no table, but still owns its bytes.
            layer.gap, layer.gap_certain = "used by no active device-mapper volume", False
        elif array := next((folder / "holders").glob("md*"), None):
            layer.gap = f"md metadata of {array.name}"
        if not segments and name in self._swap_devices():
            segments.append(UnmappedSegment(0, size, "swap space"))
        return segments

    def _holder_segments(self, name: str, folder: Path, size: int, holder: str) -> list[Segment]:
        """Return the segments of a device that a holder uses."""
        held_by = self.host.find_device_folder(holder)
        if held_by is None:
            return [
                UnmappedSegment(0, size, f"used by {holder}, which is not followed", certain=False)
            ]
        try:
            if (held_by / "dm").is_dir():
                from whoseblock.stack.kernel.dm import cut_dm_segments, read_dm_table

                number = self.host.read_text(folder / "dev") or ""
                targets = read_dm_table(self.host, holder)
                return list(cut_dm_segments(number, size, self.find_layer(holder), targets))
            if (held_by / "md").is_dir():
                return list(self._member_segments(name, held_by, self.find_layer(holder)))
        except UnsupportedError as error:
            what = f"part of {self.find_layer(holder).name}: {error}"
            return [UnmappedSegment(0, size, what, certain=False)]
        return [UnmappedSegment(0, size, f"used by {holder}, which is not followed", certain=False)]

    def _member_segments(self, name: str, array: Path, layer: Layer) -> Iterator[Segment]:
        """Yield the segments of a member of an array; raises `UnsupportedError`."""
        attributes = array / "md"
        member = attributes / f"dev-{name}"
        slot, offset = (
            self.host.read_number(member / "slot"),
            self.host.read_number(member / "offset"),
        )
        if offset is None:
            raise UnsupportedError("the kernel does not report its data offset")
        start = offset * SECTOR
        if slot is None:
            state = self.host.read_text(member / "state") or "spare"
            length = (self.host.read_number(member / "size") or 0) * _KIB
            # A faulty member has what the array had when it failed.
            certain = "faulty" not in state
            what = f"{state} member of {layer.name}"
            yield UnmappedSegment(start, max(length, SECTOR), what, certain)
            return
        if (self.host.read_text(attributes / "reshape_position") or "none") != "none":
            raise UnsupportedError("it is being reshaped")
        level = self.host.read_text(attributes / "level") or ""
        number = LINEAR if level == "linear" else int(level[4:]) if level[4:].isdecimal() else 99
        chunk = self.host.read_number(attributes / "chunk_size") or 0
        sizes = self._member_sizes(attributes, number, chunk)
        if not 0 <= slot < len(sizes):
            raise UnsupportedError(f"the kernel reports the slot {slot}")
        if number == LINEAR:
            yield LinearSegment(start, sizes[slot], layer, sum(sizes[:slot]))
            return
        layout = self.host.read_number(attributes / "layout") or 0
        striping, _ = make_striping(number, layout, chunk, sizes)
        # "none" if all of it is up to date.
        recovered = self.host.read_number(member / "recovery_start")
        length = sizes[slot] if recovered is None else min(recovered * SECTOR, sizes[slot])
        if length:
            # Few devices are members of an array.
            from whoseblock.stack.members import MemberSegment

            yield MemberSegment(start, length, layer, striping, slot)
        if length < sizes[slot]:
            what = f"part of {layer.name}: {name} has not been rebuilt here yet"
            yield UnmappedSegment(start + length, sizes[slot] - length, what, certain=False)

    def _member_sizes(self, attributes: Path, level: int, chunk: int) -> list[int]:
        """Return how many bytes of each member hold data; raises `UnsupportedError`."""
        members = self.host.read_number(attributes / "raid_disks") or 0
        if level in (0, LINEAR):
            sizes = [self.host.read_number(attributes / f"rd{at}/size") for at in range(members)]
        else:
            sizes = [self.host.read_number(attributes / "component_size")] * members
        if None in sizes or not sizes:
            raise UnsupportedError("the kernel does not report the sizes of its members")
        known = [(size or 0) * _KIB for size in sizes]
        return [size - size % chunk if chunk and level != 1 else size for size in known]

    def read_running_superblocks(self) -> Iterator[MdSuperblock]:
        """Yield the superblock of each member that an array of the kernel uses."""
        for state in sorted(self.host.root.glob("sys/class/block/md*/md/dev-*/state")):
            words = (self.host.read_text(state) or "").split(",")
            if not self.host.live or "in_sync" not in words:
                continue
            name = state.parent.name.removeprefix("dev-")
            try:
                with closing(FileMedia(f"/dev/{name}")) as media:
                    superblock = read_md_superblock(media)
            except TargetError:
                continue
            if superblock is not None:
                yield superblock

    def _swap_devices(self) -> set[str]:
        """Return the kernel names of the swap devices (proc_swaps(5))."""
        lines = (self.host.read_text(self.host.root / "proc/swaps") or "").splitlines()[1:]
        return {line.split()[0].removeprefix("/dev/") for line in lines if line.strip()}
