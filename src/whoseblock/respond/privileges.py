"""Keep the privileges that the kernel takes from a file whose blocks are exchanged or written.

The kernel removes ``security.capability`` from every changed file, and the setuid and setgid bits
from one that a process without CAP_FSETID changes.  A record in the journal, written before, lets a
later run put them back after an interruption.  It does so only on the very content that the file
was to have, so that a record never adds privileges to data that another user wrote.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from whoseblock.fs.base import FileId
from whoseblock.fs.driver import MountedVolume
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.exceptions import NotNowError
from whoseblock.respond.owners import FilePosition, OpenOwner, describe_file

__all__ = ["FilePrivileges", "PrivilegeJournal", "has_privileges"]

_CAPABILITY: Final = "security.capability"
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_CAP_FSETID: Final = 1 << 4  # linux/capability.h
#: The digest of a larger file is computed before the file is leased: others would wait too long.
_LARGE: Final = 1 << 26
#: A file that has not changed for so long has another time of change after its next change.
_SETTLED_NS: Final = 10**9
_PIECE: Final = 1 << 20


class FilePrivileges(msgspec.Struct, frozen=True, kw_only=True):
    """The privileges of a file, and the content that they belong to.

    ``mode`` is None if the kernel leaves it.  ``capability`` is in hexadecimal digits, "" if there
    is none.  ``digest`` is that of the content after the change.
    """

    subvolume: int
    inode: int
    generation: int
    uid: int
    gid: int
    mode: int | None
    capability: str
    digest: str

    @property
    def file(self) -> FileId:
        """The identity of the file."""
        return FileId(self.subvolume, self.inode)

    def belong_to(self, fd: int) -> bool:
        """Return whether an open file still has the owner and the content of the record."""
        status = os.fstat(fd)
        same_owner = (status.st_uid, status.st_gid) == (self.uid, self.gid)
        return same_owner and _digest(fd) == self.digest

    def are_missing(self, fd: int) -> bool:
        """Return whether the open file lacks any of the privileges."""
        return self._lacks_capability(fd) or self._lacks_mode(fd)

    def put_back(self, fd: int) -> None:
        """Restore the privileges of an open file; leave what another process has set meanwhile."""
        if self.mode is not None and self._lacks_mode(fd):
            os.fchmod(fd, stat.S_IMODE(self.mode))
        if self._lacks_capability(fd):
            os.setxattr(fd, _CAPABILITY, bytes.fromhex(self.capability))

    def _lacks_capability(self, fd: int) -> bool:
        return bool(self.capability) and _capability_of(fd) is None

    def _lacks_mode(self, fd: int) -> bool:
        if self.mode is None:
            return False
        now = os.fstat(fd).st_mode
        return now != self.mode and now & ~_SET_ID == self.mode & ~_SET_ID


def has_privileges(fd: int) -> bool:
    """Return whether an open file has privileges that a change by this process removes."""
    return _mode_at_risk(fd) is not None or _capability_of(fd) is not None


def _mode_at_risk(fd: int) -> int | None:
    mode = os.fstat(fd).st_mode
    return mode if mode & _SET_ID and not _keeps_set_id() else None


def _keeps_set_id() -> bool:
    """Return whether this process has CAP_FSETID, with which the kernel leaves the mode."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_FSETID)
    return False


def _capability_of(fd: int) -> bytes | None:
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError:
        return None


class PrivilegeJournal:
    """The privileges that a step has taken from files and not put back, as the journal has them.

    ``note`` records the present list durably.
    """

    def __init__(
        self,
        outstanding: Iterable[FilePrivileges],
        note: Callable[[list[FilePrivileges]], None],
    ) -> None:
        self._outstanding = {record.file: record for record in outstanding}
        self._note = note
        self._prepared: dict[FilePosition, _PreparedDigest] = {}

    @property
    def outstanding(self) -> list[FilePrivileges]:
        """The records of files whose privileges are not put back yet."""
        return list(self._outstanding.values())

    def prepare(self, owner: OpenOwner, data: bytes) -> None:
        """Compute the digest of a large file as it is with ``data`` at its position.

        It counts in `keeping` if the file does not change until then.
        """
        status = os.fstat(owner.fd)
        settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
        if status.st_size <= _LARGE or not settled or not has_privileges(owner.fd):
            return
        known = self._prepared.get(owner.position)
        if known is None or (known.changed_ns, known.data) != (status.st_ctime_ns, data):
            digest = _digest(owner.fd, owner.position.offset, data)
            self._prepared[owner.position] = _PreparedDigest(status.st_ctime_ns, data, digest)

    def _digest_of(self, owner: OpenOwner, data: bytes) -> str:
        known = self._prepared.get(owner.position)
        changed_ns = os.fstat(owner.fd).st_ctime_ns
        if known is not None and (known.changed_ns, known.data) == (changed_ns, data):
            return known.digest
        return _digest(owner.fd, owner.position.offset, data)

    @contextlib.contextmanager
    def keeping(self, owner: OpenOwner, data: bytes) -> Iterator[None]:
        """Put the privileges of a file back after the block has put ``data`` at its position.

        The caller holds a write lease on the file, so that no other process changes it.
        Raises `NotNowError` if another process waits for the lease by then.
        """
        record = _record(owner, self._digest_of(owner, data))
        self._outstanding[record.file] = record
        self._note(self.outstanding)
        try:
            yield
            if record.are_missing(owner.fd):
                syscalls.check_lease(owner.fd)
                record.put_back(owner.fd)
        finally:
            if not record.are_missing(owner.fd):
                self._drop(record)

    def put_back(self, fs: MountedVolume) -> None:
        """Put back what an interrupted attempt left, where the content is what it was to be.

        Raises `NotNowError` if another process writes to such a file.
        """
        for record in self.outstanding:
            fd = _open(fs, record)
            if fd is None:
                self._drop(record)
                continue
            try:
                if record.are_missing(fd):
                    with syscalls.read_lease(fd):
                        if not record.belong_to(fd):
                            continue
                        syscalls.check_lease(fd)
                        record.put_back(fd)
                self._drop(record)
            except NotNowError as error:
                raise NotNowError(f"{describe_file(record.file)}: {error}") from error
            finally:
                os.close(fd)

    def forget_rest(self) -> str:
        """Forget the records that are left; return a sentence on them, "" if there are none."""
        if not self._outstanding:
            return ""
        files = ", ".join(describe_file(record.file) for record in self.outstanding)
        self._outstanding.clear()
        self._note([])
        return f"capabilities of {files} were not put back: the content is not what it was to be"

    def _drop(self, record: FilePrivileges) -> None:
        self._outstanding.pop(record.file, None)
        self._note(self.outstanding)


class _PreparedDigest(NamedTuple):
    """The digest of a file with ``data`` in place, while its time of change is ``changed_ns``."""

    changed_ns: int
    data: bytes
    digest: str


def _record(owner: OpenOwner, digest: str) -> FilePrivileges:
    status = os.fstat(owner.fd)
    file, generation, _ = owner.position
    return FilePrivileges(
        subvolume=file.subvolume,
        inode=file.inode,
        generation=generation,
        uid=status.st_uid,
        gid=status.st_gid,
        mode=_mode_at_risk(owner.fd),
        capability=(_capability_of(owner.fd) or b"").hex(),
        digest=digest,
    )


def _open(fs: MountedVolume, record: FilePrivileges) -> int | None:
    """Open the file of a record for reading; return None if it no longer exists."""
    try:
        return fs.open_file(record.file, record.generation, os.O_RDONLY | os.O_NOATIME)
    except FileNotFoundError:
        return None


def _digest(fd: int, offset: int = 0, data: bytes = b"") -> str:
    """Return the digest of a file as it is with ``data`` at ``offset``.

    Bytes that cannot be read count as zeros, and their ranges are a part of it.
    """
    size = os.fstat(fd).st_size
    data = data[: max(size - offset, 0)]
    found = sha256()
    lost: list[ByteRange] = []
    with DirectMedia(fd, reopen=False) as media:
        for start, end, before in ((0, offset, b""), (offset + len(data), size, data)):
            found.update(before)
            at = start
            for piece, content in media.readable(start, max(end - start, 0)):
                _add_lost(found.update, lost, at, piece)
                found.update(content)
                at = piece + len(content)
            _add_lost(found.update, lost, at, end)
    found.update(repr([tuple(one) for one in lost]).encode())
    return found.hexdigest()


def _add_lost(add: Callable[[bytes], None], lost: list[ByteRange], start: int, end: int) -> None:
    if start >= end:
        return
    if lost and lost[-1].end == start:
        lost[-1] = ByteRange(lost[-1].start, end - lost[-1].start)
    else:
        lost.append(ByteRange(start, end - start))
    for at in range(start, end, _PIECE):
        add(bytes(min(_PIECE, end - at)))
