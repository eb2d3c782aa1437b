"""Sites of acts: a filesystem with failed bytes, and the device that it is on."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer, Owner
from whoseblock.fs.driver import AddressSpace, MountedVolume, Volume
from whoseblock.fs.mounted.exclusive import RepairLock
from whoseblock.lookup import Lookup, Query
from whoseblock.media.loops import FileIdentity
from whoseblock.ranges import ByteRange, merge
from whoseblock.respond.device import Device
from whoseblock.respond.exceptions import BusyError, NotNowError
from whoseblock.stack.base import Layer
from whoseblock.target import Target

__all__ = ["Site", "failing_at", "rows_by_layer", "site_named", "wait_silently"]


#: The longest time to wait for another repair of the same filesystem, and how often to look.
_PATIENCE_S: Final = 300.0
_POLL_S: Final = 0.1


def wait_silently(_: str) -> None:
    """Ignore the report that a step waits."""


class Site(NamedTuple):
    """A layer, its contents, and the file or device that has its bytes.

    Byte 0 of the layer is byte ``shift`` of ``path``; ``path`` is None if the layer is not one
    linear part of a device.  ``file`` is which file an image at ``path`` was when it was read.
    """

    layer: Layer
    space: AddressSpace | None
    path: str | None
    shift: int
    file: FileIdentity | None = None

    @property
    def mounted(self) -> MountedVolume | None:
        """The filesystem, if it is mounted."""
        return self.space if isinstance(self.space, MountedVolume) else None

    @property
    def filesystem(self) -> Volume | None:
        """The filesystem, mounted or not."""
        return self.space if isinstance(self.space, Volume) else None

    @property
    def identity(self) -> str:
        """The identity of the filesystem, "" if it is unknown."""
        return self.filesystem.identity if self.filesystem else ""

    @contextlib.contextmanager
    def exclusive(self, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Keep other repairs off a mounted filesystem; first wait for one that runs.

        ``on_wait`` receives a sentence when it begins to wait.  Raises `BusyError` after five
        minutes.
        """
        if self.mounted is None:
            # Its device is opened exclusively.
            yield
            return
        with contextlib.closing(RepairLock(self.mounted)) as lock:
            until = time.monotonic() + _PATIENCE_S
            told = False
            while holder := lock.acquire():
                what = f"{self.mounted.mount_point} is locked by {holder}"
                if time.monotonic() > until:
                    raise BusyError(f"{what}: resume the step later")
                if not told:
                    on_wait(f"{what}: waiting")
                    told = True
                time.sleep(_POLL_S)
            yield

    def device(self, *, writable: bool = False, exclusive: bool = False) -> Device:
        """Open the device; raise `NotNowError`."""
        if self.path is None:
            raise NotNowError(
                f"{self.layer.name} is not one linear part of a device: nothing is written"
            )
        device = Device(self.path, self.shift, writable=writable, exclusive=exclusive)
        if device.claimed is not None and self.file not in (None, device.claimed):
            device.close()
            raise NotNowError(f"{self.path!r} was replaced by another file: nothing is written")
        return device


def site_of(layer: Layer, target: Target, finder: Lookup) -> Site:
    """Return the site on a layer."""
    try:
        space = finder.leaf(layer)
    except WhoseblockError:
        return Site(layer, None, None, 0)
    path, shift = target.path_of(layer) or (None, 0)
    return Site(layer, space, path, shift, None if path is None else target.file_at(path))


def site_named(name: str, target: Target, finder: Lookup) -> Site | None:
    """Find the site on the layer of a name, among those looked up and those below the target.

    A target that is a filesystem itself matches any name: it may have been renamed.  Returns None
    if there is none.
    """
    if name in finder.layers:
        return site_of(finder.layers[name], target, finder)
    todo = [target.layer] if target.layer is not None else []
    seen: list[Layer] = []
    while todo:
        layer = todo.pop()
        if layer in seen:
            continue
        seen.append(layer)
        if not layer.segments and (layer.name == name or layer is target.layer):
            return site_of(layer, target, finder)
        todo += [segment.to for segment in layer.segments if segment.to is not None]
    return None


def rows_by_layer(
    asked: Query, answer: Answer, target: Target, finder: Lookup
) -> Iterator[tuple[Site, list[Owner]]]:
    """Yield the rows of an answer by the site that they are on, in bytes of its layer."""
    layers = finder.layers
    rows: dict[str, list[Owner]] = defaultdict(list)
    for row in answer:
        if isinstance(row.via, tuple):
            last = row.via[-1]
            rows[last.layer].append(replace(row, start=last.start, via=UNSET))
        else:
            rows[asked.layer.name].append(row)
    for name, here in rows.items():
        layer = asked.layer if name == asked.layer.name else layers.get(name)
        if layer is None:
            yield Site(Layer(name, 0, "unknown"), None, None, 0), here
        else:
            yield site_of(layer, target, finder), here


def failing_at(site: Site, rows: list[Owner]) -> tuple[list[ByteRange], str]:
    """Return the failed sectors in rows, and why they cannot be found, "" if they can."""
    wanted = merge(ByteRange(row.start, row.length) for row in rows)
    try:
        with contextlib.closing(site.device()) as device:
            return device.failing(wanted), ""
    except NotNowError as error:
        return [], str(error)
