"""Keep failed blocks in files of a hidden folder, so that they are not allocated again.

The folder belongs to root and is closed to all other users; only such a one is used or believed.
Where another user has taken its name, another name is used.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.fs.base import FileOwner, Owner
from whoseblock.fs.driver import Capability, MountedVolume, Volume
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.device import Device
from whoseblock.respond.exceptions import NotHealedError, NotNowError, RefusedError
from whoseblock.respond.owners import QUARANTINE
from whoseblock.respond.relocate import Keeper

__all__ = [
    "QuarantineKeeper",
    "Settlement",
    "in_quarantine",
    "keeper_of",
    "settle",
    "work_folder",
]

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS: Final = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Such an error fails a step, so that it can be resumed.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: A path of a file in quarantine: its folder and its name, which is the run.
_PATH: Final = re.compile(rf"/({re.escape(QUARANTINE)}(?:-[0-9a-f]+)?)/([0-9]+)\+([0-9]+)")


def in_quarantine(row: Owner, filesystem: Volume | None) -> bool:
    """Return whether a row is a file that keeps failed blocks out of use.

    Only root can make a file immutable.  While an interrupted step has not done that yet, the file
    must be in a folder of root's.
    """
    if not isinstance(row, FileOwner) or filesystem is None:
        return False
    run = _run_of(row)
    if run is None or row.start < run.start or run.end < row.start + row.length:
        return False
    facts = filesystem.files((row.file,)).get(row.file)
    if facts is not None and facts.immutable:
        return True
    return isinstance(filesystem, MountedVolume) and _is_in_own_folder(row, filesystem)


def _run_of(row: FileOwner) -> ByteRange | None:
    """Return the run that the name of a file in quarantine stands for, None for other files."""
    match = _match(row)
    return None if match is None else ByteRange(int(match[2]), int(match[3]))


def _match(row: FileOwner) -> re.Match[str] | None:
    # A file in quarantine has one name.
    if not isinstance(row.paths, tuple) or len(row.paths) != 1:
        return None
    return _PATH.fullmatch(row.paths[0])


def _is_in_own_folder(row: FileOwner, fs: MountedVolume) -> bool:
    match = _match(row)
    if match is None or fs.root_fd is None:
        return False
    try:
        folder = os.open(match[1], _FOLDER_FLAGS, dir_fd=fs.root_fd)
    except OSError:
        return False
    try:
        name = row.paths[0].rpartition("/")[2] if isinstance(row.paths, tuple) else ""
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return _is_own(folder) and status.st_uid == 0 and status.st_ino == row.inode
    except OSError:
        return False
    finally:
        os.close(folder)


def _is_own(folder: int) -> bool:
    """Return whether an open folder belongs to root, and is closed to all other users."""
    status = os.fstat(folder)
    return status.st_uid == 0 and not stat.S_IMODE(status.st_mode) & 0o077


def _open_folder(fs: MountedVolume) -> int:
    """Open the folder, and create it if there is none."""
    root = fs.root_fd
    if root is None:
        raise RefusedError("the root of the filesystem cannot be reached")
    try:
        with os.scandir(root) as entries:
            names = sorted(one.name for one in entries if one.name.startswith(QUARANTINE))
        for name in names:
            if (folder := _open_own(root, name)) is not None:
                return folder
        for name in (QUARANTINE, f"{QUARANTINE}-{secrets.token_hex(8)}"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=root)
                if (folder := _open_own(root, name)) is not None:
                    return folder
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise NotNowError(f"cannot create /{QUARANTINE}: {error.strerror}") from error
    raise NotNowError(f"cannot create /{QUARANTINE}: another process renames it")


def _open_own(root: int, name: str) -> int | None:
    """Open a folder; None if it is not root's own."""
    try:
        folder = os.open(name, _FOLDER_FLAGS, dir_fd=root)
    except OSError:
        return None
    if _is_own(folder):
        return folder
    os.close(folder)
    return None


@contextlib.contextmanager
def work_folder(fs: MountedVolume) -> Iterator[int]:
    """Provide a descriptor of the folder for `MountedVolume.capture`; remove it if it is empty."""
    folder = _open_folder(fs)
    try:
        yield folder
    finally:
        _remove_if_empty(fs, folder)
        os.close(folder)


def _remove_if_empty(fs: MountedVolume, folder: int) -> None:
    name = Path(f"/proc/self/fd/{folder}").readlink().name
    if fs.root_fd is not None and name.startswith(QUARANTINE):
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=fs.root_fd)


class QuarantineKeeper(Keeper):
    """A permanent keeper, named ``START+LENGTH`` in the folder `QUARANTINE`.

    The file of an interrupted run is used again; ``kept`` says whether it is immutable already.
    Raises `RefusedError` if it cannot be used, and `NotNowError` if no file can be created.
    """

    def __init__(self, fs: MountedVolume, run: ByteRange) -> None:
        self.name = f"{run.start}+{run.length}"
        with contextlib.ExitStack() as undo:
            self._folder = _open_folder(fs)
            undo.callback(os.close, self._folder)
            self.kept, fd = self._open()
            undo.callback(os.close, fd)
            super().__init__(fs, run, fd)
            if not self.has_run():
                if self.kept:
                    raise RefusedError(f"the file {run} in quarantine now has other blocks")
                os.ftruncate(fd, 0)
            # The name must be durable before any owner is changed.
            os.fsync(self._folder)
            undo.pop_all()

    @classmethod
    def adopt(cls, fs: MountedVolume, keeper: Keeper) -> "QuarantineKeeper":
        """Link the file of a keeper into the folder; raise OSError or `NotNowError`."""
        with work_folder(fs) as folder:
            name = f"{keeper.run.start}+{keeper.run.length}"
            # Where a file of this name is not immutable, it has no blocks.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            path = f"/proc/self/fd/{keeper.fd}"
            os.link(path, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
            keeper.is_temporary = False
            return cls(fs, keeper.run)

    def _open(self) -> tuple[bool, int]:
        try:
            return False, os.open(self.name, _FLAGS, 0o600, dir_fd=self._folder)
        except PermissionError:
            return True, os.open(self.name, _KEPT_FLAGS, dir_fd=self._folder)
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise NotNowError(f"cannot create a file in quarantine: {error.strerror}") from error

    def keep(self) -> None:
        """Make the file immutable, as far as that is permitted: the folder is closed to others."""
        os.fsync(self.fd)
        with contextlib.suppress(PermissionError):
            syscalls.set_immutable(self.fd)
            self.kept = True
        os.fsync(self._folder)

    def unlock(self) -> None:
        """Make a file that is immutable writable again."""
        syscalls.set_immutable(self.fd, immutable=False)
        fd = os.open(self.name, _FLAGS & ~os.O_CREAT, dir_fd=self._folder)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self.kept = False

    def release(self) -> None:
        """Remove the file, and free the blocks."""
        self.free()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._folder)
        os.fsync(self._folder)

    def close(self) -> None:
        """Close the file, and remove it if it has no blocks."""
        try:
            if not os.fstat(self.fd).st_blocks:
                self.release()
        finally:
            os.close(self.fd)
            _remove_if_empty(self._fs, self._folder)
            os.close(self._folder)


def keeper_of(fs: MountedVolume, run: ByteRange) -> QuarantineKeeper | None:
    """Open the file in quarantine that has all of a run, None if there is none."""
    rows = fs.owners(*run).owners
    if len(rows) != 1 or not in_quarantine(rows[0], fs):
        return None
    (row,) = rows
    kept = _run_of(row) if isinstance(row, FileOwner) else None
    return None if kept is None else QuarantineKeeper(fs, kept)


class Settlement(NamedTuple):
    """The result for failed blocks that no file but their keeper has.

    ``zeroed`` are the sectors that were zeroed.  ``kept`` are those that a quarantine keeps out of
    use, and that may still fail.
    """

    says: str
    zeroed: Sequence[ByteRange] = ()
    kept: Sequence[ByteRange] = ()


def settle(  # noqa: PLR0913 - the blocks, and what is to become of them
    fs: MountedVolume,
    device: Device,
    keeper: Keeper,
    failing: Sequence[ByteRange],
    *,
    quarantine: bool,
    trim: bool = False,
) -> Settlement:
    """Zero the sectors that fail of blocks that only their keeper has.

    Blocks that do not heal stay in quarantine, and with ``quarantine`` all of them.  With ``trim``,
    readable ones at both ends do not.  If they do not heal at the first attempt without
    ``quarantine``, raises `NotHealedError`.
    """
    in_place = isinstance(keeper, QuarantineKeeper)
    again = isinstance(keeper, QuarantineKeeper) and keeper.kept
    if isinstance(keeper, QuarantineKeeper) and keeper.kept:
        if quarantine:
            return Settlement(f"{keeper.run} is in quarantine", kept=failing)
        keeper.unlock()
    try:
        keeper.heal(device, failing)
    except NotHealedError as error:
        if not in_place and Capability.QUARANTINE not in fs.capabilities:
            raise
        if trim:
            failing = device.failing([keeper.run])
            keeper.trim(failing)
        name = _keep(fs, keeper)
        if quarantine or again:
            return Settlement(f"{keeper.run} is in quarantine, {error}", kept=failing)
        raise NotHealedError(f"{error}; {name} keeps {keeper.run} in quarantine") from error
    if quarantine:
        _keep(fs, keeper)
        return Settlement(f"{keeper.run} is in quarantine, zeroed", kept=failing)
    if isinstance(keeper, QuarantineKeeper):
        keeper.release()
    return Settlement(f"zeroed {', '.join(map(str, failing))}, and freed them", failing)


def _keep(fs: MountedVolume, keeper: Keeper) -> str:
    """Keep the blocks of a keeper for good; return the name of its file."""
    if isinstance(keeper, QuarantineKeeper):
        keeper.keep()
        return f"/{QUARANTINE}/{keeper.name}"
    with contextlib.closing(QuarantineKeeper.adopt(fs, keeper)) as permanent:
        permanent.keep()
        return f"/{QUARANTINE}/{permanent.name}"
