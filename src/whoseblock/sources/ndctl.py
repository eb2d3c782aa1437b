"""The bad blocks in the JSON that ``ndctl list --media-errors`` prints.

Ranges stand in ``badblocks`` lists of objects with ``offset`` and ``length``, in 512-byte sectors.
A list in a namespace counts from the start of its block device, one in a region from the region's.
The form of util_namespace_badblocks_to_json and util_region_badblocks_to_json in ndctl's json.c.
"""

from collections.abc import Iterator
from typing import Any, Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure
from whoseblock.sources.documents import as_list, as_number, as_text, objects, read_documents

__all__ = ["read_ndctl"]

_SECTOR: Final = 512
_EXPECTED: Final = "the JSON that ndctl list --media-errors prints"
#: Who has a list of bad blocks, by the name of the attribute that names it.
_OWNERS: Final = ("blockdev", "chardev")


def read_ndctl(text: str, name: str) -> Iterator[Failure]:
    """Give every bad range; ``name`` is the file's, for messages.

    One that is listed for a namespace and for its region is given twice.  Raises `MalformedError`.
    """
    for owner in objects(read_documents(text, name, _EXPECTED)):
        bad = as_list(owner.get("badblocks"))
        if not bad:
            continue
        device = _device(owner)
        if not device:
            raise MalformedError(
                name, None, "a blockdev, chardev or region beside every list of badblocks"
            )
        for number, one in enumerate(bad, 1):
            yield _failure(one, device, f"{name}, bad block {number} of {device}", name)


def _device(owner: dict[str, Any]) -> str:
    for key in _OWNERS:
        if device := as_text(owner.get(key)):
            return device
    # The object of a region has its name in "dev", as that of a namespace; only it has no mode.
    device = as_text(owner.get("dev"))
    return device if device.startswith("region") else ""


def _failure(one: Any, device: str, origin: str, name: str) -> Failure:  # noqa: ANN401
    expected = f"an offset and a length, in sectors, in every bad block of {device}"
    if not isinstance(one, dict):
        raise MalformedError(name, None, expected)
    start = as_number(one.get("offset"), name, expected) * _SECTOR
    length = as_number(one.get("length"), name, expected) * _SECTOR
    if not length or start + length > 1 << 63:
        raise MalformedError(name, None, expected)
    return Failure(start, length, device, origin)
