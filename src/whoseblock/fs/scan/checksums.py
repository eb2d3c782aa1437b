"""Checksums of very many structures of one size, with few calls: CRC-32C."""

from typing import TYPE_CHECKING, Final

import numpy as np
from fastcrc.crc32 import iscsi

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["REGISTER", "keep_zero"]

#: The register that a CRC-32C begins with; the checksum is the register inverted.
REGISTER: Final = 0xFFFFFFFF
#: Rows that are verified together, if all are right.
_TOGETHER: Final = 256


def keep_zero(rows: "NDArray[np.uint8]") -> "NDArray[np.bool_]":
    """Return which rows of a matrix leave the register of a CRC-32C at 0 that was 0 before.

    The register becomes 0 where it is fed with itself, and zeros leave it at 0.  So a structure of
    which the first four bytes are inverted, and which the register by its checksum follows, is
    right if its row does.  One call verifies many rows: if the register is 0 finally, all of them
    are right, with the certainty that 32 bits give.
    """
    right = np.ones(len(rows), np.bool_)
    view, width = rows.reshape(-1).data, rows.shape[1]
    for begin in range(0, len(rows), _TOGETHER):
        end = min(begin + _TOGETHER, len(rows))
        if _register(view[begin * width : end * width]):
            ats = range(begin * width, end * width, width)
            right[begin:end] = [not _register(view[at : at + width]) for at in ats]
    return right


def _register(data: memoryview) -> int:
    """Return the register that was 0 before the data."""
    return iscsi(data, REGISTER) ^ REGISTER
