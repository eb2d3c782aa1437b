"""The columns of a table of owners: one row for each row of an answer.

``docs/tables.md`` has the same list; a test compares them.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "VERSION", "Column", "arrow_schema"]

#: The version of the columns, in the metadata of each table as ``whoseblock.schema``.
VERSION: Final = 1


class Column(NamedTuple):
    """A column: its name, its type, and its meaning.

    The type is ``text``, ``texts``, ``int``, ``unsigned`` or ``bool``.  The value is null where an
    answer has no such field.
    """

    name: str
    kind: str
    meaning: str


COLUMNS: Final = (
    Column("host", "text", "the name of the host"),
    Column("filesystem", "text", "the kind and the identity of the filesystem, as in the journal"),
    Column("device", "text", "the layer that `start` counts in, such as `sda` or `disk.img`"),
    Column(
        "disk_model",
        "text",
        "the model of the disk that the device is or is on, if there is one and it is known",
    ),
    Column("disk_serial", "text", "the serial number of that disk, if known"),
    Column("start", "int", "the first byte"),
    Column("length", "int", "the number of bytes"),
    Column("kind", "text", "the kind of the owner, as in [JSON](json.md)"),
    Column("what", "text", "the use of the bytes, as in JSON"),
    Column("fork", "text", "`data` or `attr`, for files"),
    Column("subvolume", "unsigned", "the id of the subvolume, on filesystems that have them"),
    Column("inode", "unsigned", "the inode number, for files"),
    Column("file_offset", "int", "the first byte in the fork"),
    Column("file_length", "int", "the bytes of the file that are lost with any byte of the row"),
    Column("encoding", "text", "the algorithm, for compressed data"),
    Column("unwritten", "bool", "the file has no data there"),
    Column("shared", "bool", "several files own the bytes"),
    Column("paths", "texts", "every path; bytes that are not UTF-8 as `\\xNN`, `\\` doubled"),
    Column("detail", "text", "more about the owner"),
    Column("layer", "text", "the lowest layer that the bytes are in, if it is another one"),
    Column("layer_start", "int", "the first byte there"),
    Column("complete", "bool", "whether all owners of the range asked are known"),
    Column("notes", "texts", "the notes of the answer"),
)


def arrow_schema() -> "pa.Schema":
    """Return the columns as a schema of Arrow."""
    import pyarrow as pa

    kinds = {
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "int": pa.int64(),
        "unsigned": pa.uint64(),
        "bool": pa.bool_(),
    }
    return pa.schema(
        [pa.field(one.name, kinds[one.kind]) for one in COLUMNS],
        metadata={"whoseblock.schema": str(VERSION)},
    )
