"""The bad blocks in the JSON that ``ndctl list --media-errors`` prints.

Ranges stand in ``badblocks`` lists of objects with ``offset`` and ``length``, in 512-byte sectors.
A list in a region counts from the start of the region, one in a namespace from the start of its
block or character device.  But in a raw namespace ndctl as root lists the whole region, counted
from the region: see `_raw_device`.  A namespace in sector mode has no list, since its bytes move
about; its region has.  The form of util_namespace_to_json and util_region_badblocks_to_json in
ndctl's json.c.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.documents import as_list, as_number, as_text, find, objects, read_documents

__all__ = ["read_ndctl"]

_SECTOR: Final = 512
_EXPECTED: Final = "the JSON that ndctl list --media-errors prints"
#: The kernel numbers a namespace in its region.
_NAMESPACE: Final = re.compile(r"namespace([0-9]{1,9})\.[0-9]{1,9}", re.ASCII)


def read_ndctl(text: str, name: str, reading: Reading | None = None) -> Iterator[Failure]:
    """Yield every bad range; ``name`` is the file's, for messages.

    One that is listed for a namespace and for its region is yielded twice.  ``reading`` counts the
    regions, namespaces and other devices.  Raises `MalformedError`.
    """
    reading = reading or Reading(name)
    reading.unit, reading.units = "device", "devices"
    documents = read_documents(text, name, _EXPECTED)
    if not all(isinstance(document, dict | list) for document in documents):
        raise MalformedError(name, None, _EXPECTED)
    # Whether each region has a list of its own.
    regions = {
        dev: bool(one.get("badblocks"))
        for one in objects(documents)
        if (dev := as_text(one.get("dev"))).startswith("region")
    }
    counted: list[dict[str, Any]] = []
    for owner in objects(documents):
        bad = as_list(owner.get("badblocks"))
        reading.read += "dev" in owner
        if not bad:
            if owner.get("badblock_count"):
                counted.append(owner)
            continue
        device = _device(owner, bad, regions, name)
        for number, one in enumerate(bad, 1):
            reading.failures += 1
            yield _failure(one, device, f"{name}, bad block {number} of {device}", name)
    # Without --media-errors ndctl prints how many there are, and not where.  A namespace in sector
    # mode never has a list, and its region has.
    for owner in () if reading.failures else counted:
        count = as_text(owner.get("badblock_count")) or str(owner.get("badblock_count"))
        what = f"badblock_count {count} without badblocks: run ndctl list --media-errors"
        reading.count_unrecognised(as_text(owner.get("dev")), what)


def _device(owner: dict[str, Any], bad: list[Any], regions: Mapping[str, bool], name: str) -> str:
    """Say which device the list ``bad`` of an object counts from; raises `MalformedError`."""
    device = as_text(owner.get("dev"))
    if device.startswith("region"):
        return device
    disk = as_text(owner.get("blockdev"))
    # Only what pfn and dax devices are made for has an alignment.
    if as_text(owner.get("mode")) != "devdax" and owner.get("align") is None:
        return _raw_device(owner, disk, bad, regions, name)
    # With --device-dax the devices are listed one by one; there is one, unless somebody cut it up.
    chars = [owner, *as_list(find(owner, "daxregion", "devices"))]
    named = [as_text(find(one, "chardev")) for one in chars]
    device = disk or (named[0] or named[1] if len(named) == 2 else named[0])  # noqa: PLR2004
    if not device:
        raise MalformedError(
            name,
            None,
            "one blockdev, chardev or region beside every list of badblocks",
            hint="list the bad blocks of regions: ndctl list --regions --media-errors",
        )
    return device


def _raw_device(
    owner: dict[str, Any], disk: str, bad: list[Any], regions: Mapping[str, bool], name: str
) -> str:
    """Say which device the list of a namespace without pfn or dax device counts from.

    ndctl takes the region's list if it may read where the region lies, which takes root, and the
    disk's otherwise.  Only the region's can name DIMMs; both count alike if the namespace is the
    whole region, as one without labels, and so without a UUID, is.
    """
    match = _NAMESPACE.fullmatch(as_text(owner.get("dev")))
    region = f"region{match[1]}" if match else ""
    if region and any(find(one, "dimms") is not None for one in bad):
        return region
    if disk and (owner.get("uuid") is None or regions.get(region) is False):
        return disk
    if regions.get(region):
        return region
    raise MalformedError(
        name,
        None,
        f"the region of {as_text(owner.get('dev')) or 'a namespace'} too: the bad blocks of a raw"
        " namespace count from either",
        hint="ndctl list --regions --namespaces --media-errors, as root",
    )


def _failure(one: Any, device: str, origin: str, name: str) -> Failure:  # noqa: ANN401
    expected = f"an offset and a length, in sectors, in every bad block of {device}"
    if not isinstance(one, dict):
        raise MalformedError(name, None, expected)
    start = as_number(one.get("offset"), name, expected) * _SECTOR
    length = as_number(one.get("length"), name, expected) * _SECTOR
    if not length or start + length > 1 << 63:
        raise MalformedError(name, None, expected)
    return Failure(start, length, device, origin)
