"""Write tables to files of Parquet or Arrow, each of which appears when it is complete."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from whoseblock.errors import OutputError
from whoseblock.extras import import_extra

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SUFFIXES", "dataset_file", "write_table"]

#: The suffixes of the files that can be written.
SUFFIXES: Final = (".parquet", ".arrow")
#: The bytes that a name of a folder of a dataset may have as they are.
_PLAIN: Final = re.compile(rb"[A-Za-z0-9._-]")


def write_table(path: Path, batches: "Iterable[pa.RecordBatch]") -> int:
    """Write record batches to a file, in the form that its suffix names; return the rows.

    The file appears under its name when it is complete, and replaces one that has the name.  Only
    one batch is held.  Raises `OutputError`, and `MissingExtraError` without pyarrow.
    """
    import_extra("parquet")
    from whoseblock.tables.schema import arrow_schema

    rows = 0
    with _replaced(path) as name, _writer(name, path.suffix, arrow_schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def dataset_file(folder: Path, host: str, filesystem: str) -> Path:
    """Return the place of a table in a dataset of many hosts, in folders as Hive names them."""
    names = (f"host={_folder_name(host)}", f"filesystem={_folder_name(filesystem)}")
    return folder.joinpath(*names, "owners.parquet")


def _folder_name(text: str) -> str:
    data = text.encode("utf-8", "surrogateescape")
    parts = (bytes((byte,)) for byte in data)
    return "".join(p.decode() if _PLAIN.fullmatch(p) else f"%{p[0]:02X}" for p in parts)


@contextmanager
def _writer(
    name: str, suffix: str, schema: "pa.Schema"
) -> "Iterator[pa.RecordBatchFileWriter | pa.parquet.ParquetWriter]":
    import pyarrow as pa

    if suffix == ".arrow":
        with pa.OSFile(name, "wb") as file, pa.ipc.new_file(file, schema) as writer:
            yield writer
        return
    import pyarrow.parquet

    with pa.parquet.ParquetWriter(name, schema, compression="zstd") as writer:
        yield writer


@contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """Yield the name of a temporary file, which becomes ``path`` at the end."""
    import tempfile

    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        try:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(descriptor, 0o666 & ~mask)
            yield name
            os.fsync(descriptor)
            os.rename(name, path)  # noqa: PTH104
        except BaseException:
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
