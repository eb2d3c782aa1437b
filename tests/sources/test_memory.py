"""Page frame numbers and physical addresses."""

import pytest

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.memory import parse_pfn, parse_physical_address


def test_a_pfn_or_an_address_names_its_page() -> None:
    assert parse_pfn("0x100e0d", 4096)[:3] == (0x100E0D000, 4096, PHYSICAL_MEMORY)
    assert parse_pfn("307", 4096)[:3] == (1257472, 4096, PHYSICAL_MEMORY)
    assert parse_physical_address("0x100e0dfff", 4096)[:3] == (0x100E0D000, 4096, PHYSICAL_MEMORY)
    assert parse_physical_address("65537", 65536)[:3] == (65536, 65536, PHYSICAL_MEMORY)


@pytest.mark.parametrize(
    "text", ["", "x", "0x", "-1", "1.0", "1_0", " 1", "0xffffffffffffffff", "1" * 50, "\u0661"]
)
def test_a_malformed_pfn_or_address_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_pfn(text, 4096)
    if text != "0xffffffffffffffff":
        with pytest.raises(MalformedError):
            parse_physical_address(text, 4096)
