"""Resolve failures, which may name a device, to questions about layers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from whoseblock.byte_range import ByteRange
from whoseblock.errors import OutOfDeviceError, PrivilegeError, TargetError, WhoseblockError
from whoseblock.query import Query, QueryList
from whoseblock.ranges import PHYSICAL_MEMORY, RangeList
from whoseblock.sources.base import Failure
from whoseblock.stack.base import Layer, descend
from whoseblock.target import Target

if TYPE_CHECKING:
    from whoseblock.sources.block_lists.failure_list import FailureList

__all__ = ["Resolver"]

_MAX_NAMED: Final = 1024
#: Limit on the failures of layers above, until the device of an image is known.
_MAX_HELD: Final = 1 << 16
_OTHERS: Final = "other devices"


class Resolver:
    """Resolves failures to layers, for one target.

    Without a target, every failure is looked up in the device that it names. With a device as the
    target, failures of other devices count only where they map to it. With an image as the target,
    the failures of a single device are assumed to be those of the image; if there are several
    devices, ``device`` names it: see `Target`. With ``offset``, the target begins at that byte of
    the device that its failures are of. ``skipped`` counts the failures of other devices by name,
    and ``outside`` those that are of other parts of the same device.
    """

    def __init__(self, target: Target, *, device: str = "", offset: int | None = None) -> None:
        self._target = target
        self.device = device
        self.outside = 0
        self._offset = offset
        #: The device that the image is assumed to be a copy of, "" before a failure names one.
        self._assumed_device = ""
        self.skipped: Counter[str] = Counter()
        #: The failures at logical addresses without an answer, by the device and the reason.
        self.unaddressed: Counter[tuple[str, str]] = Counter()
        #: The failures of devices that this machine does not have, by name, and the first reason.
        self.absent: Counter[str] = Counter()
        self.first_absent: TargetError | None = None
        self._held: list[Failure] = []
        #: The devices that failures named, up to a limit.
        self.named: set[str] = set()

    @property
    def assumed_device(self) -> str:
        """The device whose failures are assumed to be those of the image, "" if there is none."""
        return self._assumed_device

    def resolve(self, failures: Iterable[Failure]) -> Iterator[Query]:
        """Yield the questions; raises `TargetError` for an ambiguous device.

        Failures of unknown devices are counted; `TargetError` is raised if there are no others.
        """
        count = 0
        for query in self._resolve(chain(self._hold_above(failures), self._release())):
            count += 1
            yield query
        if self.first_absent is not None and not count:
            raise self.first_absent

    def resolve_lists(self, lists: "Iterable[FailureList]") -> Iterator[QueryList]:
        """Yield the questions of failures without a device; raises what `resolve` does."""
        # Most failures are few, or name a device.
        from whoseblock.sources.block_lists.failure_list import FailureList

        layer = self._target.layer
        if layer is None:
            raise LookupError("failures without a device need a target")
        named = layer is not self._target.root
        for ranges, report, lines in lists:
            if self._offset is None and (not report or self.device or _are_within(ranges, layer)):
                yield QueryList(layer, ranges, report, lines, named)
                continue
            placed = []
            for number, failed in enumerate(ranges):
                line = lines[number] if report else 0
                origin = f"{report}, line {line}" if report else ""
                if found := self._place(ByteRange(*failed), layer, origin):
                    placed.append((*found, line))
            part = FailureList.of(report, placed)
            yield QueryList(layer, part.ranges, report, part.lines, named)

    def _hold_above(self, failures: Iterable[Failure]) -> Iterator[Failure]:
        """Hold back failures that a layer above a device reports, if the device may be the image's.

        Which device that is, its own failures decide first.
        """
        target = self._target
        is_image = target.root is not None and not target.is_device and not self.device
        for failure in failures:
            if failure.is_above and is_image and len(self._held) < _MAX_HELD:
                self._held.append(failure)
            else:
                yield failure

    def _release(self) -> Iterator[Failure]:
        for failure in self._held:
            if self._assumed_device in ("", failure.device):
                yield failure
            else:
                self.skipped[failure.device] += 1
        self._held.clear()

    def _resolve(self, failures: Iterable[Failure]) -> Iterator[Query]:
        for failure in failures:
            if failure.device and len(self.named) < _MAX_NAMED:
                self.named.add(failure.device)
            if failure.is_logical or failure.file is not None:
                yield from self._resolve_logical(failure)
            else:
                yield from self._resolve_range(failure)

    def _resolve_range(self, failure: Failure) -> Iterator[Query]:
        """Yield the question about a range of a device."""
        target = self._target
        start, length, device, origin, remark, *_ = failure
        if not device and target.layer is not None:
            # The ranges may be those of the target's log instead.
            other = target.layer is not target.root
            if placed := self._place(ByteRange(start, length), target.layer, origin):
                yield Query(*placed, target.layer, origin, other, remark)
        elif (layer := self._layer_of(device)) is None:
            # An absent device is counted elsewhere.
            if target.root is not None:
                self.skipped[device] += 1
        elif layer is target.root and device == self._assumed_device:
            if placed := self._place(ByteRange(start, length), layer, origin):
                yield Query(*placed, layer, origin, named=True, remark=remark)
        elif target.root is None or self._reaches_target(layer, start, length, target.root):
            yield Query(start, length, layer, origin, named=True, remark=remark)
        else:
            self.skipped[device] += 1

    def _resolve_logical(self, failure: Failure) -> Iterator[Query]:
        """Yield the questions about addresses of the filesystem on a device, if it has such."""
        root = self._target.root
        layer = self._layer_of(failure.device)
        if layer is None or root not in (None, layer):
            # An absent device is counted elsewhere.
            if root is not None:
                self.skipped[failure.device] += 1
            return
        start, length, device, origin, remark, *_, file = failure
        try:
            own = self._target.logical_layer(layer)
            places = [(start, length)]
            if file is not None:
                places = self._target.locate_in_file(layer, file, start, length)
        except PrivilegeError:
            raise
        except WhoseblockError as error:
            self._pass_over(device, str(error))
            return
        if not places:
            subvolume, inode = file or (0, 0)
            self._pass_over(device, f"inode {inode} of subvolume {subvolume} has no data there")
        for at, size in places:
            if at + size > own.size:
                self._pass_over(device, f"{own.name} has no address {at}")
            else:
                yield Query(at, size, own, origin, named=True, remark=remark)

    def _pass_over(self, device: str, reason: str) -> None:
        if len(self.unaddressed) >= _MAX_NAMED:
            device, reason = _OTHERS, ""
        self.unaddressed[device, reason] += 1

    def _place(self, failed: ByteRange, layer: Layer, origin: str) -> ByteRange | None:
        """Return the part of a failure that is on the target; None if there is none.

        Raises `OutOfDeviceError` for a range past the end, or outside of the target if the user
        typed it.
        """
        if self._offset is not None:
            low = max(failed.start - self._offset, 0)
            high = min(failed.end - self._offset, layer.size)
            if (low < high and origin) or high - low == failed.length:
                return ByteRange(low, high - low)
            if origin:
                self.outside += 1
                return None
        elif failed.end <= layer.size or not origin or self.device:
            return failed
        raise OutOfDeviceError(
            f"{origin or 'the range'}: {failed} is past the end of {layer.name}, which has"
            f" {layer.size} bytes"
            if self._offset is None
            else f"{origin or 'the range'}: {failed} is not on {layer.name}, which has {layer.size}"
            f" bytes from {self._offset}",
            hint="if TARGET is a part of the failed device, pass --offset BYTES, where it begins;"
            " if it is a copy that was cut short, pass --device NAME",
        )

    def _layer_of(self, device: str) -> Layer | None:
        """Return the layer of a named device, None if it is unrelated to the target."""
        target = self._target
        if target.root is None:
            return self._find_own(device)
        if self.device:
            if device == self.device:
                return target.root
            return self._find_layer(device)
        if target.is_device:
            return self._find_layer(device)
        if device == PHYSICAL_MEMORY or device.startswith("region"):
            return self._find_layer(device)
        if self._assumed_device not in ("", device):
            raise TargetError(
                f"the failures are of {self._assumed_device!r} and of {device!r}: which of them is"
                f" {target.path!r}?",
                hint="pass --device NAME",
            )
        self._assumed_device = device
        return target.root

    def _find_own(self, device: str) -> Layer | None:
        """Return the layer of a device of this machine; count a failure of one that is absent."""
        if device not in self.absent:
            try:
                return self._target.layer_of(device)
            except PrivilegeError:
                raise
            except TargetError as error:
                self.first_absent = self.first_absent or error
        self.absent[device if len(self.absent) < _MAX_NAMED else _OTHERS] += 1
        return None

    def _find_layer(self, device: str) -> Layer | None:
        try:
            return self._target.layer_of(device)
        except TargetError:
            return None

    @staticmethod
    def _reaches_target(layer: Layer, start: int, length: int, root: Layer) -> bool:
        """Return whether a range of a layer maps to the target."""
        if layer is root:
            return True
        return any(
            offset.layer == root.name
            for mapping in descend(layer, start, length)
            for offset in mapping.via
        )


def _are_within(ranges: RangeList, layer: Layer) -> bool:
    """Return whether every range ends on a layer."""
    if not ranges or max(ranges.starts) + max(ranges.lengths) <= layer.size:
        return True
    return all(start + length <= layer.size for start, length in ranges)
