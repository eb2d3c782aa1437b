"""Answers to many questions as NumPy columns."""

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FORKS", "KINDS", "WHATS", "OwnerArrays", "as_columns", "row_dtype"]

#: What the numbers in `OwnerArrays.kind` mean, in the words of the contract.
KINDS: Final = ("file", "metadata", "free", "staging", "outside", "unknown", "unreferenced")
#: What the numbers in `OwnerArrays.fork` mean.
FORKS: Final = ("", "data", "attr")
#: What the numbers in `OwnerArrays.what` mean.
WHATS: Final = (
    "",
    "data",
    "directory",
    "symlink",
    "xattr",
    "extent-map",
    "unknown",
    "static",
    "log",
    "ag",
    "inode-btree",
    "inodes",
    "refcount-btree",
    "past the end of the filesystem",
    "group-descriptors",
    "reserved-group-descriptors",
    "block-bitmap",
    "inode-bitmap",
    "mmp",
    "tree",
)


class OwnerArrays(NamedTuple):
    """One element for each row of every answer, but for `complete` and `notes`.

    Rows are ordered by question, then as in an answer.  ``start``, ``length`` and ``file_offset``
    are bytes; ``file_offset`` is -1 where there is none, ``inode`` and ``subvolume`` are 0.
    ``complete`` has one element a question, and ``notes`` the notes of the questions that have any.
    """

    question: "NDArray[np.int64]"
    start: "NDArray[np.int64]"
    length: "NDArray[np.int64]"
    kind: "NDArray[np.uint8]"
    what: "NDArray[np.uint8]"
    fork: "NDArray[np.uint8]"
    inode: "NDArray[np.uint64]"
    file_offset: "NDArray[np.int64]"
    unwritten: "NDArray[np.bool_]"
    shared: "NDArray[np.bool_]"
    subvolume: "NDArray[np.uint64]"
    complete: "NDArray[np.bool_]"
    notes: dict[int, tuple[str, ...]]


def row_dtype() -> "np.dtype[np.void]":
    """Return the type of a row: the question that it answers, and the fields of a `Piece`.

    Every field is aligned: NumPy copies columns that are not.
    """
    import numpy as np

    fields = {
        "question": (np.int64, 0),
        "start": (np.int64, 8),
        "length": (np.int64, 16),
        "kind": (np.uint8, 48),
        "what": (np.uint8, 49),
        "fork": (np.uint8, 50),
        "inode": (np.uint64, 24),
        "file_offset": (np.int64, 32),
        "unwritten": (np.bool_, 51),
        "shared": (np.bool_, 52),
        "subvolume": (np.uint64, 40),
    }
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": 56})


def as_columns(
    rows: "NDArray[np.void]", complete: "NDArray[np.bool_]", notes: dict[int, tuple[str, ...]]
) -> OwnerArrays:
    """Split rows of `row_dtype` into columns."""
    return OwnerArrays(
        question=rows["question"],
        start=rows["start"],
        length=rows["length"],
        kind=rows["kind"],
        what=rows["what"],
        fork=rows["fork"],
        inode=rows["inode"],
        file_offset=rows["file_offset"],
        unwritten=rows["unwritten"],
        shared=rows["shared"],
        subvolume=rows["subvolume"],
        complete=complete,
        notes=notes,
    )
