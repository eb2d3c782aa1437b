"""The other devices of a filesystem that is on several, among those that may have them."""

from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import NamedTuple

from whoseblock.errors import TargetError
from whoseblock.fs import opening
from whoseblock.fs.driver import Probe
from whoseblock.media.base import Media
from whoseblock.stack.base import Layer

__all__ = ["OtherDevice", "find_other_devices"]


class OtherDevice(NamedTuple):
    """A layer that is another device of a filesystem, and its medium."""

    layer: Layer
    media: Media


def find_other_devices(
    own: Probe, candidates: Iterable[Layer], undo: ExitStack
) -> list[OtherDevice]:
    """Return the other devices of the filesystem of ``own``, which ``undo`` closes.

    ``candidates`` are layers in the order of preference: of several that are the same device, the
    first counts.  Those that cannot be read are passed over; the filesystem names what is missing.
    """
    if own.devices == 1:
        return []
    numbers = {own.device}
    found: list[OtherDevice] = []
    for layer in candidates:
        if len(numbers) >= own.devices:
            break
        with ExitStack() as attempt:
            try:
                other = attempt.enter_context(closing(layer.open()))
            except TargetError:
                continue
            probe = opening.probe_member(other)
            if probe is None or (probe.name, probe.uuid) != (own.name, own.uuid):
                continue
            if probe.device not in numbers:
                numbers.add(probe.device)
                found.append(OtherDevice(layer, other))
                undo.push(attempt.pop_all())
    return found
