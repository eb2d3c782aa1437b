"""Physical memory: page frame numbers and addresses."""

import re
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure
from whoseblock.stack.base import PHYSICAL_MEMORY

__all__ = ["failure_of_address", "failure_of_pfn"]

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)
_MOST: Final = 1 << 63


def failure_of_pfn(text: str, page_size: int) -> Failure:
    """Give the page of memory with a page frame number; raises `MalformedError`."""
    return _page(_number(text, "--pfn") * page_size, page_size, f"pfn {text}")


def failure_of_address(text: str, page_size: int) -> Failure:
    """Give the page of memory that holds a physical address; raises `MalformedError`.

    Memory fails by pages: the kernel takes the whole page out of use, whichever byte it was.
    """
    address = _number(text, "--phys")
    return _page(address - address % page_size, page_size, f"physical address {text}")


def _number(text: str, name: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise MalformedError(name, None, f"a number, decimal or 0x…, and not {text!r}")
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _page(start: int, page_size: int, origin: str) -> Failure:
    if start + page_size > _MOST:
        raise MalformedError(origin, None, "a place below 2**63 bytes")
    return Failure(start, page_size, PHYSICAL_MEMORY, origin)
