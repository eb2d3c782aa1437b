"""On-disk structures, each written down once.

A structure is a `NamedTuple` whose annotations are the widths below, in the order of the disk::

    class RmapRec(NamedTuple):
        startblock: Be32
        blockcount: Be32
        owner: Be64
        offset: Be64

    RMAP_REC = Layout(RmapRec)

`Layout` makes of it the `struct` decoder for headers and single lookups, and the NumPy dtype for
scanning whole leaves.  Everything is big-endian; the few little-endian fields are checksums, which
are only ever compared as bytes.
"""

import struct
from typing import TYPE_CHECKING, Annotated, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np

__all__ = ["S8", "U8", "Be16", "Be32", "Be64", "Bytes4", "Bytes7", "Bytes12", "Layout", "Uuid"]

U8 = Annotated[int, "B"]
S8 = Annotated[int, "b"]
Be16 = Annotated[int, "H"]
Be32 = Annotated[int, "I"]
Be64 = Annotated[int, "Q"]
Bytes4 = Annotated[bytes, "4s"]
Bytes7 = Annotated[bytes, "7s"]
Bytes12 = Annotated[bytes, "12s"]
Uuid = Annotated[bytes, "16s"]

_NUMPY_CODES = {"B": "u1", "b": "i1", "H": ">u2", "I": ">u4", "Q": ">u8"}

Record = TypeVar("Record", bound=NamedTuple)


class Layout(Generic[Record]):
    """The two decoders of one structure: `unpack_from` for one, `dtype` for many."""

    def __init__(self, record: type[Record]) -> None:
        self.record = record
        self.fields: dict[str, str] = {
            # The names of the widths are aliases of Annotated, whose metadata is the struct code.
            name: width.__metadata__[0]
            for name, width in record.__annotations__.items()
        }
        self.code = "".join(self.fields.values())
        self.struct = struct.Struct(">" + self.code)
        self.size = self.struct.size

    def unpack_from(self, buffer: bytes | memoryview, offset: int = 0) -> Record:
        """Decode the structure at ``offset``; the caller has made sure that it is all there."""
        return self.record._make(self.struct.unpack_from(buffer, offset))

    def unpack_many(self, buffer: bytes | memoryview, offset: int, count: int) -> tuple[int, ...]:
        """Decode ``count`` structures that follow one another, all their fields in one row."""
        return struct.unpack_from(">" + self.code * count, buffer, offset)

    def dtype(self) -> "np.dtype[np.void]":
        """Return the same structure to NumPy."""
        import numpy as np

        return np.dtype(
            [(name, _NUMPY_CODES.get(code, f"S{code[:-1]}")) for name, code in self.fields.items()]
        )
