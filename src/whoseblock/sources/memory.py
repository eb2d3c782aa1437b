"""Parse page frame numbers and addresses of physical memory."""

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import MAX_OFFSET, Failure, parse_number, quote

__all__ = ["parse_pfn", "parse_physical_address"]


def parse_pfn(text: str, page_size: int) -> Failure:
    """Return the page of memory with a page frame number; raises `MalformedError`."""
    return _make_failure(_require_number(text, "--pfn") * page_size, page_size, f"pfn {text}")


def parse_physical_address(text: str, page_size: int) -> Failure:
    """Return the page of memory at a physical address; raises `MalformedError`.

    Memory fails by pages: the kernel takes the whole page out of use, whichever byte failed.
    """
    address = _require_number(text, "--phys")
    return _make_failure(address - address % page_size, page_size, f"physical address {text}")


def _require_number(text: str, name: str) -> int:
    number = parse_number(text)
    if number is None:
        raise MalformedError(name, None, f"a number, decimal or 0x…, and not {quote(text)}")
    return number


def _make_failure(start: int, page_size: int, origin: str) -> Failure:
    if start + page_size > MAX_OFFSET:
        raise MalformedError(origin, None, "an address below 2**63")
    return Failure(start, page_size, PHYSICAL_MEMORY, origin)
