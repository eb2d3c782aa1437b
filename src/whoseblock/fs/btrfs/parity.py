"""Data of RAID 6 from what is left of its row: which factors the rest has.

The parity P is the sum of the data of a row, and Q the sum of 2^i times the data number i, in the
field of 256 elements with the polynomial 0x11d (H. Peter Anvin, "The mathematics of RAID-6", and
lib/raid6 of Linux).
"""

from functools import cache, lru_cache
from typing import Final

__all__ = ["multiplied", "two_lost", "without_p"]

_POLYNOMIAL: Final = 0x11D
_ORDER: Final = 255


@cache
def _powers() -> tuple[list[int], list[int]]:
    """Return the powers of 2, and the exponent of each element but 0."""
    powers, exponents = [1], [0] * 256
    for number in range(1, _ORDER):
        doubled = powers[-1] << 1
        powers.append(doubled ^ _POLYNOMIAL if doubled > _ORDER else doubled)
        exponents[powers[-1]] = number
    return powers, exponents


def _power(exponent: int) -> int:
    return _powers()[0][exponent % _ORDER]


def _product(one: int, other: int) -> int:
    if not one or not other:
        return 0
    exponents = _powers()[1]
    return _power(exponents[one] + exponents[other])


def _inverse(one: int) -> int:
    return _power(-_powers()[1][one])


@lru_cache(256)
def _table(factor: int) -> bytes:
    return bytes(_product(factor, value) for value in range(256))


def multiplied(raw: bytes, factor: int) -> bytes:
    """Return each byte times an element of the field."""
    return raw if factor == 1 else raw.translate(_table(factor))


def without_p(own: int, count: int) -> list[int]:
    """Return the factors that give data number ``own`` of ``count``, without P.

    Those of the other data in order, and last that of Q.
    """
    return [_power(number - own) for number in range(count) if number != own] + [_power(-own)]


def two_lost(own: int, other: int, count: int) -> list[int]:
    """Return the factors that give data number ``own`` of ``count``, without number ``other``.

    Those of the remaining data in order, and last those of P and Q.
    """
    shared = _inverse(_power(own) ^ _power(other))
    factors = [
        _product(shared, _power(number) ^ _power(other))
        for number in range(count)
        if number not in {own, other}
    ]
    return [*factors, _product(shared, _power(other)), shared]
