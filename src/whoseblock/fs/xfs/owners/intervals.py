"""Sorted intervals as NumPy columns: order, union, intersection, and what touches what.

An interval is half-open; its columns are ``low`` and ``high``, or ``starts`` and ``ends``.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

__all__ = ["ascending_order", "expand", "intersect", "merge", "run_starts", "touching"]

#: Candidates are taken one by one up to so many for each question and record, else by blocks...
_PLENTY: Final = 4
#: ... of so many records.
_BLOCK: Final = 64

_DIGIT: Final = 16


def ascending_order(values: "Ints") -> "Ints":
    """Return the stable order of numbers that are not negative.

    They are sorted by their 16-bit digits, the lowest first: NumPy sorts such small numbers by
    counting, in a quarter of the time.  Its sort that is not stable is no alternative: it uses
    AVX2, with which the processor that QEMU 7.2 emulates gets a quarter of all orders wrong.
    """
    if (values[1:] >= values[:-1]).all():
        return np.arange(values.size)
    order = np.argsort(values.astype(np.uint16), kind="stable")
    for shift in range(_DIGIT, int(values.max()).bit_length(), _DIGIT):
        digit = (values >> shift).astype(np.uint16)[order]
        order = order[np.argsort(digit, kind="stable")]
    return order


def run_starts(values: "NDArray[np.generic]") -> "NDArray[np.intp]":
    """Return the index of each value that differs from the one before it."""
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))[: values.size])


def merge(low: "Ints", high: "Ints") -> "tuple[Ints, Ints]":
    """Join questions that touch or overlap; the result ascends."""
    if (low[1:] < low[:-1]).any():
        order = np.argsort(low, kind="stable")
        low, high = low[order], high[order]
    if (high[1:] < high[:-1]).any():
        high = np.maximum.accumulate(high)
    after = np.flatnonzero(low[1:] > high[:-1])
    return (
        low[np.concatenate(([0], after + 1))[: low.size]],
        high[np.concatenate((after, [low.size - 1]))[: low.size]],
    )


def touching(ends: "Ints", first: "Ints", stop: "Ints", low: "Ints") -> "tuple[Ints, Ints]":
    """Return every pair of a question and a record of its window that ends past its ``low``.

    The window of question i is the records from ``first[i]`` up to ``stop[i]``.  One early record
    that ends late makes the windows of all after it begin there.  So if the windows are large, the
    largest ends of blocks of records are matched first, which skips what cannot match.
    """
    counts = np.maximum(stop - first, 0)
    if counts.sum() <= _PLENTY * (ends.size + low.size) or ends.size <= _BLOCK:
        question, record = expand(first, counts)
    else:
        largest = np.maximum.reduceat(ends, np.arange(0, ends.size, _BLOCK))
        asked, block = touching(largest, first // _BLOCK, -(-stop // _BLOCK), low)
        block_first = np.maximum(first[asked], block * _BLOCK)
        block_stop = np.minimum(stop[asked], (block + 1) * _BLOCK)
        position, record = expand(block_first, np.maximum(block_stop - block_first, 0))
        question = asked[position]
    keep = ends[record] > low[question]
    return question[keep], record[keep]


def expand(first: "Ints", counts: "Ints") -> "tuple[Ints, Ints]":
    """Return (i, first[i]), (i, first[i] + 1), … ``counts[i]`` times for every i."""
    if (counts == 1).all():
        return np.arange(counts.size), first
    owner = np.repeat(np.arange(counts.size), counts)
    begin = np.cumsum(counts) - counts
    return owner, np.arange(owner.size) - (begin - first)[owner]


def intersect(starts: "Ints", ends: "Ints", low: "Ints", high: "Ints") -> "tuple[Ints, Ints, Ints]":
    """Intersect disjoint ascending intervals with questions: question, from, to."""
    first = np.searchsorted(ends, low, "right")
    stop = np.searchsorted(starts, high)
    question, index = expand(first, np.maximum(stop - first, 0))
    return (
        question,
        np.maximum(starts[index], low[question]),
        np.minimum(ends[index], high[question]),
    )
