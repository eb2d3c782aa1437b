"""Parse the media errors in the output of ``cxl list --media-errors``.

With ``--regions``, an error has the offset from the start of its region and a length, in bytes, and
the region has its address in ``resource``. With ``--memdevs`` it has only the address in the device
(``dpa``), which a region maps in pieces: such errors are counted. The form is that of
util_cxl_poison_list_to_json in ndctl's cxl/json.c.
"""

from collections.abc import Iterator
from typing import Any, Final

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading, shorten
from whoseblock.sources.programs.documents import (
    Documents,
    as_list,
    as_text,
    find,
    iterate_objects,
    read_documents,
)

__all__ = ["INTERLEAVE_REMARK", "read_cxl"]

_EXPECTED: Final = "the JSON that cxl list --media-errors prints"
#: The smallest granularity of interleaving, in bytes, for a region that lists none.
_DEFAULT_GRAIN: Final = 256
INTERLEAVE_REMARK: Final = (
    "the error is longer than what one device holds here; the rest is at other addresses"
)


def read_cxl(
    text: str, name: str, page_size: int = 4096, reading: Reading | None = None
) -> Iterator[Failure]:
    """Yield the pages of every error; ``name`` is the file in messages.

    ``reading`` counts the regions and memory devices. Raises `MalformedError`.
    """
    reading = reading or Reading(name)
    reading.unit, reading.units = "device", "devices"
    documents = read_documents(text, name, _EXPECTED)
    owners = [
        one for one in iterate_objects(documents.values) if "region" in one or "memdev" in one
    ]
    if not owners and any(document != [] for document in documents.values):
        raise MalformedError(name, None, _EXPECTED, path="$")
    for owner in owners:
        errors = as_list(owner.get("media_errors"))
        if "offset" in owner or "dpa" in owner:
            # An error itself may name the memory device.
            continue
        reading.read += 1
        label = shorten(as_text(owner.get("region")) or as_text(owner.get("memdev")))
        if "media_errors" not in owner and owner.get("media_errors_count"):
            reading.count_unrecognised(label, "no media_errors: run cxl list --media-errors")
        for index, error in enumerate(errors):
            origin = f"{name}, error {index + 1} of {label}"
            if find(error, "offset") is None or "region" not in owner:
                reason = "which is in a memory device; cxl list --regions --media-errors has it"
                reading.count_unplaced(label, f"dpa {find(error, 'dpa')}", reason)
                continue
            reading.failures += 1
            yield _make_failure(documents, owner, index, page_size, origin)


def _make_failure(
    documents: Documents, region: dict[str, Any], index: int, page_size: int, origin: str
) -> Failure:
    label = shorten(as_text(region.get("region")))
    base = documents.number(region, "resource", expected=f"the resource of {label}")
    expected = f"an offset and a length in every media error of {label}"
    offset = documents.number(region, "media_errors", index, "offset", expected=expected)
    length = documents.number(region, "media_errors", index, "length", expected=expected)
    remark = ""
    ways = region.get("interleave_ways", 1)
    if ways != 1:
        grain = _DEFAULT_GRAIN
        if "interleave_granularity" in region:
            wanted = f"the granularity of {label} in bytes"
            grain = documents.number(region, "interleave_granularity", expected=wanted) or grain
        if offset % grain + length > grain:
            length, remark = grain - offset % grain, INTERLEAVE_REMARK
    start = base + offset
    end = start + length
    start -= start % page_size
    end += -end % page_size
    if not length or end > MAX_OFFSET:
        key = "offset" if base + offset >= MAX_OFFSET else "length"
        raise documents.error(expected, region, "media_errors", index, key)
    return Failure(start, end - start, PHYSICAL_MEMORY, origin, remark)
