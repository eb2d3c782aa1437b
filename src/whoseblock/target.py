"""The layers of a target: a device or an image, its companions, this machine's devices."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from whoseblock.closing import Closing
from whoseblock.errors import BlockError, NotAFilesystemError, TargetError
from whoseblock.fs import opening, registry
from whoseblock.fs.base import FileId
from whoseblock.fs.driver import AddressSpace, MountedVolume, Probe, Volume
from whoseblock.media.base import Media
from whoseblock.media.device import FileMedia
from whoseblock.media.loops import FileIdentity
from whoseblock.media.mounts import (
    block_devices_of,
    find_mounts,
    is_folder,
    mount_note,
    mounted_device,
    mounted_readers,
)
from whoseblock.members import find_other_devices
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.stack.base import Layer, LinearSegment, layers_below, reach
from whoseblock.stack.formats.partitions import read_partition_table
from whoseblock.stack.images.assembly import Assembly, add_table_structures
from whoseblock.stack.kernel.contents import devices_in_order
from whoseblock.stack.kernel.devices import ENCRYPTED_VOLUME, BlockDevices
from whoseblock.stack.kernel.host import Host
from whoseblock.stack.mounted import CompanionDevice, companion_devices

if TYPE_CHECKING:
    from whoseblock.stack.kernel.nvdimm import PersistentMemory

__all__ = ["LOGICAL", "ONLY_ENCRYPTED", "Target", "TargetOptions"]

#: A size for what has none of its own (2**63 - 1, the largest loff_t).
_NO_END: Final = (1 << 63) - 1
#: The address space of a filesystem's own addresses.
LOGICAL: Final = "logical"
#: Stands for the name of the only encrypted layer.
ONLY_ENCRYPTED: Final = "CLEAR"
_REGION: Final = re.compile(r"region[0-9]+", re.ASCII)


class TargetOptions(Struct, frozen=True):
    """The options for looking at a target.

    ``members`` are further disks or images of its volume groups, arrays and filesystems.
    ``opened`` are devices or images of what encrypted layers show if they are opened, by the names
    of these layers, or by `ONLY_ENCRYPTED` if there is a single one.  ``at_filesystem``
    takes the target for a filesystem's device as it is.  ``through_loop`` goes from a loop device
    into the filesystem that holds its file, too.  ``device`` is the kernel's name of the
    device that the target is a copy of.  ``companions`` are the other devices of its filesystem by
    their role.  ``address_space`` is the role of the one that the ranges are of, if not the
    target, or `LOGICAL` if they are addresses of the filesystem.
    ``root`` is where /sys and /proc are read.  ``offline`` asks no kernel about what is mounted.
    ``sector`` is the size of the sectors that partition tables count, None if it is unknown.
    """

    members: tuple[str, ...] = ()
    opened: dict[str, str] = {}
    at_filesystem: bool = False
    device: str = ""
    through_loop: bool = False
    companions: dict[str, str] = {}
    address_space: str | None = None
    root: str = "/"
    offline: bool = False
    sector: int | None = None


class Target(Closing):
    """A target and all that is known around it; a context manager.

    ``path`` is a device, an image or a mount point; None if all failures name their own devices.
    Raises `TargetError`.
    """

    def __init__(self, path: str | None, options: TargetOptions) -> None:
        self.host = Host(options.root)
        self.path = path
        self._options = options
        self._devices = BlockDevices(self.host)
        self._undo = ExitStack()
        self._assembly = Assembly(
            opening.begins_with_filesystem,
            sector=options.sector,
            read_running=self._devices.read_running_superblocks,
            find_opened=self._find_opened,
        )
        #: The layers of opened volumes by the names that the user gave, and where they were used.
        self._opened: dict[str, Layer] = {}
        self._encrypted: dict[str, list[str]] = {}
        self._named: dict[str, Layer] = {}
        self._looked_into: set[Layer] = set()
        #: The filesystem's own addresses, if they were asked about.
        self._logical: dict[Layer, AddressSpace] = {}
        self._logical_layers: dict[Layer, tuple[Layer, Volume]] = {}
        self._images: dict[Layer, str] = {}
        #: Which file each image is, by its path: another one may have the name by now.
        self._files: dict[str, FileIdentity] = {}
        #: The layers of companions: their role, and the layer of the filesystem.
        self._roles: dict[Layer, tuple[str, Layer]] = {}
        #: The named companions that the filesystem of the target does not have, and why.
        self._unused: dict[str, str] = {}
        with ExitStack() as undo:
            undo.callback(self._undo.close)
            self._opened = {
                name: self._named_by_user(path) for name, path in options.opened.items()
            }
            self.members = [self._named_by_user(name) for name in options.members]
            self.root = None if path is None else self._root(path)
            self._assembly.finish()
            self._find_mounted()
            self.layer = self._asked()
            undo.pop_all()

    @cached_property
    def _memory(self) -> "PersistentMemory":
        from whoseblock.stack.kernel.nvdimm import PersistentMemory

        return PersistentMemory(self.host, self._devices)

    @cached_property
    def _companion_devices(self) -> tuple[CompanionDevice, ...]:
        return tuple(companion_devices(self.host, registry.companion_mount_options()))

    def _root(self, path: str) -> Layer:
        """Return the layer of the target, which may be a copy of a device of the host."""
        if self.host.live and is_folder(path):
            return self._mount_point(path)
        if not self._options.device:
            return self._named_by_user(path, alone=self._options.at_filesystem)
        media = self._undo.enter_context(closing(FileMedia(path)))
        layer = self._bound(self._options.device, media)
        self._named[self._options.device] = layer
        return layer

    def _mount_point(self, path: str) -> Layer:
        """Return the layer of the device that is mounted at a folder."""
        device = mounted_device(path) or 0
        name = self.host.find_device_by_number(device)
        if name is None and len(devices := block_devices_of(device)) == 1:
            # The filesystem has a number of its own.
            name = self.host.find_device_by_number(*devices)
        if name is None:
            # Not on one block device: whether the kernel tells anything, it will say.
            return Layer(path, _NO_END, "mounted filesystem", device=device)
        layer = self._devices.find_layer(name)
        return self._looked(layer) if self._options.through_loop else layer

    def _bound(self, device: str, media: FileMedia) -> Layer:
        """Read a device of the host from a copy of it."""
        if self.host.find_device_folder(device) is not None:
            layer = self._devices.find_layer(device)
            layer.read_from(media.reopened)
        else:
            layer = Layer(
                device,
                media.size,
                "image",
                open_media=media.reopened,
                size_certain=False,
            )
        if not self._options.at_filesystem:
            self._look_at(layer, media)
        return layer

    def _named_by_user(self, path: str, *, alone: bool = False) -> Layer:
        """Return the layer of a device or an image; ``alone`` looks no further."""
        device = self.host.find_device_at(path) if self.host.live else None
        if device is not None and not alone:
            return self._looked(self._devices.find_layer(device))
        media = self._undo.enter_context(closing(FileMedia(path)))
        name = device or self._unused_name(path)
        layer = Layer(
            name,
            media.size,
            "disk" if device else "image",
            open_media=media.reopened,
        )
        if not alone:
            self._assembly.add(layer, media)
            self._images[layer] = path
            self._files[path] = media.identity
        self._named[name] = layer
        return layer

    def _find_opened(self, layer: Layer) -> Layer | None:
        """Return the opened volume of an encrypted layer, if the user named it.

        Raises `TargetError` if the user named one volume for several layers.
        """
        name = layer.name if layer.name in self._opened else ONLY_ENCRYPTED
        layers = self._encrypted.setdefault(name, [])
        layers.append(layer.name)
        opened = self._opened.get(name)
        if opened is not None and len(layers) > 1:
            raise TargetError(
                f"several layers are encrypted: {', '.join(layers)}",
                hint=f"name the layer of each volume: --member {layers[0]}=IMAGE",
            )
        return opened

    def _find_mounted(self) -> None:
        """Find out what of the images is mounted by loop devices: there the kernel knows more.

        Offline, or where it is not clear which layer that is, every answer says that it may be old;
        a filesystem that fills an image adds that note itself.
        """
        for layer, path in self._images.items():
            leaves = {segment.start: segment.to for segment in layer.segments if segment.to}
            unclear = False
            for reader in mounted_readers(path):
                leaf = layer if reader.whole else leaves.get(reader.offset)
                if leaf is None or leaf.segments or self._options.offline:
                    unclear = True
                else:
                    leaf.device = reader.device
            if unclear and layer.segments:
                layer.doubts += (f"{layer.name}: {mount_note(path)}",)

    def _unused_name(self, path: str) -> str:
        name = os.path.basename(path) or path  # noqa: PTH119 - a name, not a place
        return path if name in self._named else name

    def _looked(self, layer: Layer) -> Layer:
        """Look into every leaf below ``layer`` of which the kernel knows no use."""
        todo = [layer]
        while todo:
            one = todo.pop()
            if one in self._looked_into:
                continue
            self._looked_into.add(one)
            if self._options.through_loop and not one.backing_segments:
                from whoseblock.fs.mounted.fiemap import file_extents
                from whoseblock.stack.kernel.loops import find_backing_segments

                one.backing_segments = tuple(
                    find_backing_segments(
                        self.host, one.name, self._devices.find_layer, file_extents
                    )
                )
                todo += [below for file in one.backing_segments for below in layers_below(file)]
            if one.readable:
                try:
                    media = self._undo.enter_context(closing(one.open()))
                except TargetError:
                    # The error is reported when it is queried.
                    media = None
                if media is not None:
                    self._look_at(one, media)
            todo += [segment.to for segment in one.segments if segment.to is not None]
        return layer

    def _look_at(self, layer: Layer, media: Media) -> None:
        """Complete what the kernel says of a device with what is on it."""
        if not layer.segments:
            self._assembly.add(layer, media)
        elif any(one.to and one.to.kind == ENCRYPTED_VOLUME for one in layer.segments):
            from whoseblock.stack.images.encrypted import add_header

            add_header(layer, media)
        elif not all(
            isinstance(one, LinearSegment) and one.to.kind == "partition" for one in layer.segments
        ):
            return
        elif opening.begins_with_filesystem(media):
            # Made over the table: the kernel has not looked since, and no table can be there.
            layer.segments = []
        elif table := read_partition_table(media, self._options.sector):
            layer.segments = add_table_structures(layer.segments, table)

    def _asked(self) -> Layer | None:
        """Return the layer that ranges without a device are of."""
        for role, path in self._options.companions.items():
            layer = self._named_by_user(path, alone=True)
            if self.root is not None:
                self._roles[layer] = (role, self.root)
            if role == self._options.address_space:
                return layer
        if self._options.address_space == LOGICAL:
            if self.root is None:
                raise TargetError(
                    "logical addresses are of a filesystem: which one?",
                    hint="name a device of the filesystem as the target",
                )
            return self.logical_layer(self.root)
        if self._options.address_space:
            role = self._options.address_space
            raise TargetError(
                f"which device is the {role} of the filesystem?",
                hint=f"name it with --{role}-device",
            )
        return self.root

    def logical_layer(self, layer: Layer) -> Layer:
        """Return the layer of the own addresses of the filesystem on a layer.

        Raises a `WhoseblockError` if there is no filesystem, or if it has no such addresses.
        """
        if layer not in self._logical_layers:
            if layer.segments:
                raise TargetError(f"{layer.name} is not the device of a filesystem")
            volume = self.open_leaf(layer)
            self._undo.enter_context(closing(volume))
            if not isinstance(volume, Volume):
                raise TargetError(f"{layer.name} has no logical addresses")
            space = volume.logical_addresses()
            found = Layer(volume.identity, space.device_size, "logical addresses")
            self._logical[found] = space
            self._logical_layers[layer] = found, volume
        return self._logical_layers[layer][0]

    def locate_in_file(
        self, layer: Layer, file: tuple[int, int], offset: int, length: int
    ) -> list[tuple[int, int]]:
        """Return the own addresses of a range of a file of the filesystem on a layer.

        ``file`` is its subvolume and inode.  Raises as `logical_layer`, or `BlockError`.
        """
        self.logical_layer(layer)
        _, volume = self._logical_layers[layer]
        return list(volume.locate_in_file(FileId(*file), offset, length))

    @property
    def is_device(self) -> bool:
        """Whether the kernel knows the target itself, and therefore what it is made of."""
        return self.path is not None and self.host.find_device_at(self.path) is not None

    # ------------------------------------------------------------------ devices that failures name

    def layer_of(self, device: str) -> Layer:
        """Return the layer that the kernel calls ``device``; raises `TargetError`."""
        if device not in self._named:
            if device == PHYSICAL_MEMORY:
                layer = self._memory.make_memory_layer()
            elif _REGION.fullmatch(device):
                layer = self._memory.make_region_layer(device)
            else:
                layer = self._devices.find_layer(self.host.find_device_called(device) or device)
            if self.host.live:
                self._looked(layer)
                self._assembly.finish()
            self._named[device] = layer
        return self._named[device]

    def bad_block_lists(self) -> Iterator[tuple[str, str, str]]:
        """Yield the bad-blocks lists of the target, its disk and its region, empty ones too.

        Each with the device that it counts from, its name, and its text.  Raises `TargetError` if
        the kernel keeps none.
        """
        name = self._options.device or (self.host.find_device_at(self.path) if self.path else None)
        folder = self.host.find_device_folder(name) if name else None
        if name is None or folder is None:
            raise TargetError(
                f"the kernel has no list of bad blocks of {self.path!r}, which is no device",
                hint="name a device, not an image",
            )
        places = [(name, folder)]
        if (folder / "partition").exists():
            places.append((folder.parent.name, folder.parent))
        if region := self._memory.find_region_of(name):
            places.append((region, self.host.root / "sys/bus/nd/devices" / region))
        lists = [(device, self.host.read_text(place / "badblocks")) for device, place in places]
        if all(text is None for _, text in lists):
            raise TargetError(
                f"the kernel keeps no list of bad blocks of {name!r}",
                hint="disks, persistent memory and members of md arrays have one; name the disk",
            )
        for device, text in lists:
            if text is not None:
                yield device, f"{device}/badblocks", text

    def path_of(self, layer: Layer) -> tuple[str, int] | None:
        """Return the file or device that has a layer as it is, and where in it the layer begins.

        None if there is none: the layer is in pieces, or has copies.
        """
        if layer.device is not None and (name := self.host.find_device_by_number(layer.device)):
            return f"/dev/{name}", 0
        for image, path in self._images.items():
            if (shift := _shift_of(layer, image)) is not None:
                return path, shift
        return None

    def file_at(self, path: str) -> FileIdentity | None:
        """Return which file was opened as the image at a path, None if it is no image."""
        return self._files.get(path)

    # ------------------------------------------------------------------ options without effect

    def unused_members(self) -> Iterator[str]:
        """Yield the path of each member that shares no array or volume group with another layer.

        The other layers are those of the target, of the other members, and of the devices that
        failures have named so far.
        """
        for path, member in zip(self._options.members, self.members, strict=True):
            below = reach(member)
            named = [self.root, *self.members, *self._named.values()]
            others = [layer for layer in named if layer not in (None, member)]
            reached = set().union(*map(reach, filter(None, others)))
            if below & reached:
                continue
            if not any(below & set(one) and reached & set(one) for one in self._assembly.sets):
                yield path

    def unused_opened(self) -> Iterator[tuple[str, str]]:
        """Yield name and path of each opened volume for which no encrypted layer was found."""
        for name, path in self._options.opened.items():
            if name not in self._encrypted:
                yield name, path

    def unused_devices(self) -> Iterator[tuple[str, str]]:
        """Yield the role of each named companion that has no effect, and why."""
        for role in self._options.companions:
            if role == self._options.address_space:
                continue
            if self.root is None:
                yield role, "there is no TARGET"
            elif self.root.segments:
                yield role, f"the filesystem is not directly on {self.path}: name its own device"
            elif role in self._unused:
                yield role, self._unused[role]

    @property
    def is_mounted(self) -> bool | None:
        """Whether a filesystem of the target is mounted here; None if there is no target."""
        if self.root is None:
            return None
        if self._options.offline:
            return False
        devices = {layer.device for layer in reach(self.root)} - {None}
        return any(find_mounts(device)[1] for device in devices if device is not None)

    # ------------------------------------------------------------------ what is on a layer

    def open_leaf(self, layer: Layer) -> AddressSpace:
        """Open what is on a layer that nothing is made of.

        Raises `NotAFilesystemError`, `UnsupportedError` or `TargetError` that says why not.
        """
        if layer in self._logical:
            return self._logical[layer]
        if layer in self._roles:
            return self._open_companion(layer, *self._roles[layer])
        for one in self._companion_devices:
            if self._is_device(layer, one.device):
                return self._open_companion(layer, one.role, self.layer_of(one.data))
        device = None if self._options.offline else layer.device
        filesystem = opening.open_mounted_or_disk(
            device, layer.size, partial(self._open_disk, layer)
        )
        self._check_companions(layer, filesystem)
        return filesystem

    def _open_disk(self, layer: Layer, failed: BlockError | None, doubts: Sequence[str]) -> Volume:
        """Open the filesystem on a layer by reading it; ``failed`` if the kernel did not answer."""
        if not layer.readable:
            if failed is not None:
                raise failed
            raise NotAFilesystemError("it cannot be read here: its content is unknown")
        with ExitStack() as undo:
            media = undo.enter_context(closing(layer.open()))

            def find_others(own: Probe) -> list[Media]:
                others = find_other_devices(own, self._candidates(layer, own), undo)
                if others:
                    self._assembly.sets.append([layer, *(other.layer for other in others)])
                return [other.media for other in others]

            companions = self._companions_of(layer, undo)
            try:
                filesystem = opening.open_volume([media], companions, doubts, find_others)
            except NotAFilesystemError as error:
                raise self._no_filesystem(layer, media, error) from error
            undo.pop_all()
        return filesystem

    def _candidates(self, layer: Layer, own: Probe) -> Iterator[Layer]:
        """Yield the layers that may be other devices of the filesystem on a layer.

        Those that the user named come first.  For a device of this machine, those follow that list
        its filesystem, and those of which the content is not listed.
        """
        seen = {layer}
        named = filter(None, (*self.members, self.root, *self._named.values()))
        for one in (below for top in named for below in reach(top)):
            if one not in seen and one.readable and not one.segments:
                seen.add(one)
                yield one
        if layer.device is None or not self.host.live:
            return
        for name in devices_in_order(self.host, own.name, own.uuid):
            try:
                one = self._devices.find_layer(name)
            except TargetError:
                continue
            if one not in seen and one.size and one.readable and not one.segments:
                seen.add(one)
                yield one

    def _is_device(self, layer: Layer, device: str) -> bool:
        return layer is self._named.get(device) or layer.name == device

    def _companions_of(self, layer: Layer, undo: ExitStack) -> dict[str, Media]:
        """Open the companions that the user named of the filesystem of the target."""
        if layer is not self.root:
            return {}
        return {
            role: undo.enter_context(closing(FileMedia(path)))
            for role, path in self._options.companions.items()
        }

    def _check_companions(self, layer: Layer, filesystem: Volume) -> None:
        """Record which of the named companions the filesystem of the target does not have."""
        if layer is not self.root:
            return
        if isinstance(filesystem, MountedVolume):
            why = "the filesystem is mounted, and the kernel knows its devices"
            self._unused = dict.fromkeys(self._options.companions, why)
        else:
            self._unused = dict(filesystem.unused_companions)

    def _open_companion(self, layer: Layer, role: str, data: Layer) -> AddressSpace:
        """Open a companion of the filesystem on ``data``."""
        if not data.readable or not layer.readable:
            raise NotAFilesystemError(
                f"it is the {role} device of the filesystem on {data.name}, which is not available"
            )
        with closing(data.open()) as below, ExitStack() as undo:
            media = undo.enter_context(closing(layer.open()))
            space = opening.open_companion(role, media, below)
            undo.pop_all()
        return space

    def _no_filesystem(self, layer: Layer, media: Media, error: NotAFilesystemError) -> Exception:
        """Return an error that describes what is there instead of a filesystem."""
        companion = opening.identify_companion(media)
        if layer is self.root:
            if companion:
                error.title = companion.what
            return error
        if companion:
            return NotAFilesystemError(
                f"it looks like {companion.what}; look at that with --{companion.role}-device, and"
                f" --address-space {companion.role}",
                title=companion.what,
            )
        subject = "no filesystem that whoseblock knows"
        if not error.title:
            return NotAFilesystemError(subject)
        return NotAFilesystemError(subject, reason=error.reason, hint=error.hint, title=error.title)

    def close(self) -> None:
        """Close everything that was opened to look into it."""
        self._undo.close()


def _shift_of(layer: Layer, image: Layer) -> int | None:
    """Return where in an image a layer lies as a whole; None if it does not."""
    if layer is image:
        return 0
    for segment in image.segments:
        if (
            not isinstance(segment, LinearSegment)
            or segment.to_start
            or segment.length < segment.to.size
        ):
            continue
        inside = _shift_of(layer, segment.to)
        if inside is not None:
            return segment.start + inside
    return None
