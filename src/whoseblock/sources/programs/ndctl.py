"""Parse the bad blocks in the output of ``ndctl list --media-errors``.

The JSON has ``badblocks`` lists of objects with ``offset`` and ``length``, in 512-byte sectors. A
list in a region counts from the start of the region, a list in a namespace from the start of its
block or character device. For a raw namespace, however, ndctl as root prints the list of the
region: see `_raw_device`. A namespace in sector mode has no list, but its region has. The form is
that of util_namespace_to_json and util_region_badblocks_to_json in ndctl's json.c.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading, quote, shorten
from whoseblock.sources.programs.documents import (
    Documents,
    as_list,
    as_text,
    find,
    iterate_objects,
    read_documents,
)

__all__ = ["read_ndctl"]

_SECTOR: Final = 512
#: Limit on the name of a device, in characters (NAME_MAX).
_MAX_NAME: Final = 255
_EXPECTED: Final = "the JSON that ndctl list --media-errors prints"
#: The kernel's name of a namespace, with the number of its region.
_NAMESPACE: Final = re.compile(r"namespace([0-9]{1,9})\.[0-9]{1,9}", re.ASCII)


def read_ndctl(text: str, name: str, reading: Reading | None = None) -> Iterator[Failure]:
    """Yield every bad range; ``name`` is the file in messages.

    A range listed for a namespace and for its region is yielded twice. ``reading`` counts the
    regions, namespaces and other devices. Raises `MalformedError`.
    """
    reading = reading or Reading(name)
    reading.unit, reading.units = "device", "devices"
    documents = read_documents(text, name, _EXPECTED)
    if not all(isinstance(document, dict | list) for document in documents.values):
        raise MalformedError(name, None, _EXPECTED, path="$")
    # The regions, and whether each has a list.
    regions = {
        dev: bool(one.get("badblocks"))
        for one in iterate_objects(documents.values)
        if (dev := as_text(one.get("dev"))).startswith("region")
    }
    without_list: list[dict[str, Any]] = []
    for owner in iterate_objects(documents.values):
        bad = as_list(owner.get("badblocks"))
        reading.read += "dev" in owner
        if not bad:
            if owner.get("badblock_count"):
                without_list.append(owner)
            continue
        device = _find_device(documents, owner, bad, regions)
        if len(device) > _MAX_NAME:
            raise documents.error(f"a name of a device, not {quote(device)}", owner)
        for index in range(len(bad)):
            reading.failures += 1
            origin = f"{name}, bad block {index + 1} of {device}"
            yield _make_failure(documents, owner, index, device, origin)
    # Without --media-errors ndctl prints the number of bad blocks, but no list. A namespace in
    # sector mode never has a list, but its region has.
    for owner in () if reading.failures else without_list:
        count = as_text(owner.get("badblock_count")) or str(owner.get("badblock_count"))
        what = f"badblock_count {count} without badblocks: run ndctl list --media-errors"
        reading.count_unrecognised(shorten(as_text(owner.get("dev"))), what)


def _find_device(
    documents: Documents, owner: dict[str, Any], bad: list[Any], regions: Mapping[str, bool]
) -> str:
    """Return the device that the list ``bad`` counts from; raises `MalformedError`."""
    device = as_text(owner.get("dev"))
    if device.startswith("region"):
        return device
    disk = as_text(owner.get("blockdev"))
    # Only a namespace with a pfn or dax device has an alignment.
    if as_text(owner.get("mode")) != "devdax" and owner.get("align") is None:
        return _raw_device(documents, owner, disk, bad, regions)
    # With --device-dax all devices are listed; by default there is one.
    chars = [owner, *as_list(find(owner, "daxregion", "devices"))]
    named = [as_text(find(one, "chardev")) for one in chars]
    device = disk or (named[0] or named[1] if len(named) == 2 else named[0])  # noqa: PLR2004
    if not device:
        raise documents.error(
            "one blockdev, chardev or region beside every list of badblocks",
            owner,
            hint="list the bad blocks of regions: ndctl list --regions --media-errors",
        )
    return device


def _raw_device(
    documents: Documents,
    owner: dict[str, Any],
    disk: str,
    bad: list[Any],
    regions: Mapping[str, bool],
) -> str:
    """Return the device that the list of a namespace without pfn or dax device counts from.

    ndctl prints the region's list if it may read the address of the region, which needs root, and
    the disk's list otherwise. Only the region's list can name DIMMs. Both count alike if the
    namespace is the whole region, as a namespace without labels is, which has no UUID.
    """
    match = _NAMESPACE.fullmatch(as_text(owner.get("dev")))
    region = f"region{match[1]}" if match else ""
    if region and any(find(one, "dimms") is not None for one in bad):
        return region
    if disk and (owner.get("uuid") is None or regions.get(region) is False):
        return disk
    if regions.get(region):
        return region
    raise documents.error(
        f"the region of {shorten(as_text(owner.get('dev'))) or 'a namespace'} too: the bad blocks"
        " of a raw namespace count from either",
        owner,
        hint="ndctl list --regions --namespaces --media-errors, as root",
    )


def _make_failure(
    documents: Documents, owner: dict[str, Any], index: int, device: str, origin: str
) -> Failure:
    expected = f"an offset and a length, in sectors, in every bad block of {shorten(device)}"
    offset = documents.number(owner, "badblocks", index, "offset", expected=expected)
    length = documents.number(owner, "badblocks", index, "length", expected=expected)
    if not length or (offset + length) * _SECTOR > MAX_OFFSET:
        key = "offset" if offset * _SECTOR >= MAX_OFFSET else "length"
        raise documents.error(expected, owner, "badblocks", index, key)
    return Failure(offset * _SECTOR, length * _SECTOR, device, origin)
