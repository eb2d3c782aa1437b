"""From failures, which name a device or nothing, to questions about layers."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from whoseblock.errors import TargetError
from whoseblock.lookup import Asked
from whoseblock.sources.base import Failure
from whoseblock.stack.base import PHYSICAL_MEMORY, Layer, descend
from whoseblock.target import Target

__all__ = ["Resolver"]

_MOST_NAMED: Final = 1024


class Resolver:
    """Says which layer each failure is of, for one target.

    Without a target every failure is looked up where it names its device.  With one that the
    kernel knows, failures of other devices count only as far as they reach it.  With an image,
    what a file tells of one single device is taken to be about the image; of several, ``device``
    says which: see `Target`.  ``passed_over`` counts the failures of other devices, by name.
    """

    def __init__(self, target: Target, *, device: str = "") -> None:
        self._target = target
        self.device = device
        #: The one device that an image is a copy of, once a failure has named it.
        self._taken_for = ""
        self.passed_over: Counter[str] = Counter()
        #: Every device that a failure has named, up to a number that people read.
        self.named: set[str] = set()

    @property
    def taken_for(self) -> str:
        """The device whose failures were taken to be about the image, "" if none had to be."""
        return self._taken_for

    def asked(self, failures: Iterable[Failure]) -> Iterator[Asked]:
        """Give the questions; raises `TargetError` where a device is not known or not clear."""
        target = self._target
        for start, length, device, origin, remark in failures:
            if device and len(self.named) < _MOST_NAMED:
                self.named.add(device)
            if not device and target.layer is not None:
                # The log is not what the target's name stands for.
                other = target.layer is not target.root
                yield Asked(start, length, target.layer, origin, other, remark)
            elif (layer := self._layer_of(device)) is None:
                self.passed_over[device] += 1
            elif target.root is None or self._reaches(layer, start, length, target.root):
                yield Asked(start, length, layer, origin, named=True, remark=remark)
            else:
                self.passed_over[device] += 1

    def _layer_of(self, device: str) -> Layer | None:
        """Give the layer of a named device; None if it has nothing to do with the target."""
        target = self._target
        if target.root is None:
            return target.layer_of(device)
        if self.device:
            if device == self.device:
                return target.root
            return self._known(device)
        if target.is_device:
            return self._known(device)
        if device == PHYSICAL_MEMORY or device.startswith("region"):
            return self._known(device)
        if self._taken_for not in ("", device):
            raise TargetError(
                f"the failures are of {self._taken_for!r} and of {device!r}: which of them is"
                f" {target.path!r}?",
                hint="say --device NAME",
            )
        self._taken_for = device
        return target.root

    def _known(self, device: str) -> Layer | None:
        try:
            return self._target.layer_of(device)
        except TargetError:
            return None

    @staticmethod
    def _reaches(layer: Layer, start: int, length: int, root: Layer) -> bool:
        """Tell whether a range of a layer has to do with the target."""
        if layer is root:
            return True
        return any(
            step.layer == root.name
            for landing in descend(layer, start, length)
            for step in landing.via
        )
