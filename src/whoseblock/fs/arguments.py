"""The arguments of a filesystem's questions: checked once, before anything is read."""

import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from whoseblock.errors import ArgumentError, ClosedError, OutOfDeviceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from whoseblock.ranges import RangeList

__all__ = [
    "check_columns",
    "check_inodes",
    "check_list",
    "check_open",
    "check_within",
    "checked_ranges",
    "whole_number",
]

#: No offset is larger; messages show no larger number.
_MAX_OFFSET: Final = 1 << 63
_MAX_INODE: Final = 1 << 64


def check_open(name: str, *, closed: bool) -> None:
    """Raise `ClosedError` if the filesystem on ``name`` is closed."""
    if closed:
        raise ClosedError(
            f"the filesystem on {name!r} is closed",
            hint="ask within the with block, or before close()",
        )


def check_within(start: int, length: int, device: str, device_size: int) -> tuple[int, int]:
    """Return a range as two `int`; NumPy's integers count, and ``bool`` does not.

    Raises `ArgumentError` for another type, and `OutOfDeviceError` unless the range has a byte and
    lies on the device.
    """
    if type(start) is not int or type(length) is not int:
        start, length = whole_number(start, "start"), whole_number(length, "length")
    if length <= 0:
        raise OutOfDeviceError(
            f"a range without bytes is nowhere on {device!r}", hint="ask for one byte or more"
        )
    if start < 0 or start + length > device_size:
        # Python refuses to write numbers of thousands of digits.
        shown = f"{start}+{length}" if max(abs(start), length) < _MAX_OFFSET else "past 2**63"
        raise OutOfDeviceError(
            f"the range {shown} is not within {device!r}, which has {device_size} bytes",
            hint="offsets count from the start of the device or image that is named",
        )
    return start, length


def checked_ranges(
    ranges: Iterable[tuple[int, int]], device: str, device_size: int
) -> Iterator[tuple[int, int]]:
    """Yield each range as `check_within` returns it; raises what that does.

    Raises `ArgumentError` also for what is no pair, or cannot be iterated over.
    """
    try:
        given = iter(ranges)
    except TypeError:
        what = type(ranges).__name__
        raise ArgumentError(f"ranges must be pairs of start and length, not {what}") from None
    for one in given:
        try:
            start, length = one
        except (TypeError, ValueError):
            raise ArgumentError("every range must be a pair of start and length") from None
        # What check_within would return, without a call for each of a million ranges.
        if (
            type(start) is int
            and type(length) is int
            and 0 <= start < start + length <= device_size
        ):
            yield start, length
        else:
            yield check_within(start, length, device, device_size)


def check_list(ranges: "RangeList", device: str, device_size: int) -> None:
    """Raise what `check_within` does for the first range that is not on the device."""
    if not ranges:
        return
    # Far fewer operations than a check of each, unless one is near the end.
    if max(ranges.starts) + max(ranges.lengths) > device_size or not all(ranges.lengths):
        for start, length in ranges:
            check_within(start, length, device, device_size)


def check_inodes(inodes: Iterable[int]) -> list[int]:
    """Return inode numbers as `int`; raises `ArgumentError` for what can be none."""
    try:
        numbers = [whole_number(inode, "an inode number") for inode in inodes]
    except TypeError:
        what = type(inodes).__name__
        raise ArgumentError(f"inodes must be an iterable of inode numbers, not {what}") from None
    if not all(0 <= number < _MAX_INODE for number in numbers):
        raise ArgumentError("an inode number must be from 0 to 2**64 - 1")
    return numbers


def whole_number(value: object, what: str) -> int:
    """Return an integer of any type as `int`; raises `ArgumentError` for anything else."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise ArgumentError(f"{what} must be a whole number, not {type(value).__name__}")


def check_columns(
    starts: "ArrayLike", lengths: "ArrayLike", device: str, device_size: int
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Return ranges as two columns of 64-bit integers; raises what `check_within` does.

    Raises `ArgumentError` also for columns of other than one dimension, or of different lengths.
    """
    import numpy as np

    low, length = _column(starts, "starts"), _column(lengths, "lengths")
    if len(low) != len(length):
        raise ArgumentError(f"there are {len(low)} starts, and {len(length)} lengths")
    if "O" in {low.dtype.kind, length.dtype.kind}:
        # No such number is on a device, but the first wrong range may be another one.
        for pair in zip(low.tolist(), length.tolist(), strict=True):
            check_within(*pair, device, device_size)
    wrong = np.flatnonzero((low < 0) | (length <= 0) | (low > device_size - length))
    for index in wrong[:1].tolist():
        check_within(int(low[index]), int(length[index]), device, device_size)
    return low.astype(np.int64, copy=False), length.astype(np.int64, copy=False)


def _column(given: "ArrayLike", what: str) -> "NDArray[np.int64] | NDArray[np.object_]":
    """Return a column as 64-bit integers, or as objects if they do not hold it."""
    import numpy as np

    try:
        column = np.asarray(given)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{what} must be a sequence of whole numbers") from None
    if column.ndim != 1:
        raise ArgumentError(f"{what} must be a sequence of whole numbers, of one dimension")
    if column.dtype.kind == "i":
        return column.astype(np.int64)
    values = given if isinstance(given, list | tuple) else column.tolist()
    numbers = [whole_number(value, f"every element of {what}") for value in values]
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        return np.array(numbers, object)
