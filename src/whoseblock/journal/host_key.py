"""Read the secret key of this user on this host, and make it on first use.

No database has it.  So rows that carry a code made with it were written by this user here.
"""

import os
import secrets
from pathlib import Path
from typing import Final

from whoseblock.errors import JournalError, JournalPrivilegeError
from whoseblock.journal.location import state_folder
from whoseblock.media.trusted_files import (
    TrustedFile,
    UntrustedFileError,
    check_file,
    find_trusted,
)

__all__ = ["VARIABLE", "read_key"]

#: The environment variable that names the file.
VARIABLE: Final = "WHOSEBLOCK_KEY"
_BYTES: Final = 32


def read_key(*, make: bool) -> bytes | None:
    """Return the key of 32 bytes; None if there is none and ``make`` is false.

    It is in $WHOSEBLOCK_KEY, or else in the file ``key`` of the state folder.  With ``make`` it is
    created with mode 0600.  Raises `JournalError` if other users may read or replace the file.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named).absolute() if named else state_folder() / "key"
    title = f"the key {str(path)!r}"
    try:
        file = find_trusted(title, path, make=make)
        key = _read(file)
        if key is None and make:
            _create(file.path)
            key = _read(file)
    except UntrustedFileError as error:
        raise JournalError(str(error), hint=error.hint) from error
    except OSError as error:
        why = error.strerror or str(error)
        hint = f"name another file with ${VARIABLE}"
        kind = JournalPrivilegeError if isinstance(error, PermissionError) else JournalError
        raise kind(f"{title} cannot be used: {why}", hint=hint) from error
    return key


def _read(file: TrustedFile) -> bytes | None:
    check_file(file, private=True)
    try:
        key = file.path.read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != _BYTES:
        raise JournalError(
            f"{file.title} is damaged: it has {len(key)} bytes, not {_BYTES}",
            hint="move it away, and a new one is made; interrupted plans are not resumed then",
        )
    return key


def _create(path: Path) -> None:
    """Create the file as a whole; another process may do the same at the same time."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
    finally:
        part.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
