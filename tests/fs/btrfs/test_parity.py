"""Data of RAID 6 from P and Q, against the plain definition of both."""

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.btrfs.parity import multiplied, two_lost, without_p


def double(value: int) -> int:
    """Multiply by 2 in the field of 256 elements."""
    return value << 1 ^ (0x11D if value & 0x80 else 0)


def combined(parts: list[bytes], factors: list[int]) -> bytes:
    """Return the sum of parts times factors."""
    terms = [multiplied(part, factor) for part, factor in zip(parts, factors, strict=True)]
    return bytes(reduce(int.__xor__, column) for column in zip(*terms, strict=True))


@given(st.lists(st.binary(min_size=4, max_size=4), min_size=2, max_size=40), st.data())
def test_any_two_that_are_lost(data: list[bytes], drawn: st.DataObject) -> None:
    count = len(data)
    p = bytes(reduce(int.__xor__, column) for column in zip(*data, strict=True))
    # The last one is doubled least often: Horner's rule, as the kernel has it.
    q = bytes(
        reduce(lambda total, value: double(total) ^ value, reversed(column))
        for column in zip(*data, strict=True)
    )
    own = drawn.draw(st.integers(0, count - 1))
    others = [part for number, part in enumerate(data) if number != own]
    assert combined([*others, q], without_p(own, count)) == data[own]
    other = drawn.draw(st.integers(0, count - 1).filter(lambda one: one != own))
    rest = [part for number, part in enumerate(data) if number not in {own, other}]
    assert combined([*rest, p, q], two_lost(own, other, count)) == data[own]
