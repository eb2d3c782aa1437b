"""A view of a mounted filesystem that nothing hides: where to ask, and its tree from the root.

A mount may show only a part of the tree, lie in another mount namespace, or be covered by another
mount, and so may any folder in it.  The kernel answers wherever the filesystem is reached; for the
tree there is a private mount of the filesystem's root, on which nothing is mounted.
"""

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from whoseblock.closing import Closing
from whoseblock.errors import BlockError, PrivilegeError, TargetError
from whoseblock.fs.mounted import kernel
from whoseblock.fs.mounted.beneath import mount_id, open_beneath
from whoseblock.media.mounts import SHUT_DOWN, Mount, read_mounts

__all__ = ["OpenRoot", "View", "inode_at", "open_view"]

#: Opens the root directory of a filesystem, given a descriptor on it; raises OSError.
OpenRoot = Callable[[int], int]

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000  # linux/sched.h
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 1 << 18, 2  # linux/mount.h
#: The most mounts over one another that are unmounted.
_MOST_COVERS: Final = 100
_ASK: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_NAME: Final = os.O_PATH | os.O_CLOEXEC


class View(Closing):
    """A mounted filesystem, open for questions.

    ``fd`` is where the kernel is asked; ``top`` is the root directory, on the same mount, and
    ``root`` names it on a private one: None if they are unavailable.  ``mounts`` are those of our
    own mount namespace that their mount points lead to, each with a descriptor that names it;
    ``process`` is in the namespace that has the filesystem mounted if ours has not.
    ``options`` are the filesystem's when it was opened.
    """

    def __init__(self, mount: Mount, process: int | None) -> None:
        self.kind = mount.kind
        self.device = mount.device
        self.point = mount.point
        self.options = mount.options
        self.process = process
        self.fd = -1
        self.top: int | None = None
        self.root: int | None = None
        self.mounts: list[tuple[Mount, int]] = []
        self._undo = ExitStack()

    def own(self, fd: int) -> int:
        """Close a descriptor with the view; return it."""
        self._undo.callback(os.close, fd)
        return fd

    def places(self, path: bytes, inode: int) -> Iterator[str]:
        """Yield where the file of a path, from the filesystem's root, can be opened now."""
        for place, fd, inside in self.candidates(path):
            with contextlib.suppress(OSError):
                if not inside or inode_at(fd, inside) == inode:
                    yield place

    def candidates(self, path: bytes) -> Iterator[tuple[str, int, bytes]]:
        """Yield where a path from the filesystem's root may be, if nothing is mounted on its way.

        Each with a descriptor of the mount, and the path within that.
        """
        for mount, fd in self.mounts:
            root = os.fsencode(mount.root).rstrip(b"/")
            if path != root and not path.startswith(root + b"/"):
                continue
            inside = path[len(root) :].lstrip(b"/")
            point = os.fsencode(mount.point)
            place = b"/".join((point.rstrip(b"/"), inside)) if inside else point
            yield os.fsdecode(place), fd, inside

    def close(self) -> None:
        """Close the filesystem."""
        self._undo.close()


def inode_at(directory: int, path: bytes) -> int:
    """Return the number of the inode at a relative path within its mount."""
    fd = open_far(directory, path, _NAME | os.O_NOFOLLOW)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


#: As much of a path as one system call takes (PATH_MAX, with its NUL).
_FAR: Final = 4095


def open_far(directory: int, path: bytes, flags: int) -> int:
    """Open a relative path within its mount, however long the path is."""
    step = os.open(".", _NAME | os.O_DIRECTORY, dir_fd=directory)
    try:
        while len(path) > _FAR:
            cut = path.rindex(b"/", 0, _FAR)
            further = open_beneath(step, path[:cut], _NAME | os.O_DIRECTORY)
            os.close(step)
            step, path = further, path[cut + 1 :]
        return open_beneath(step, path or b".", flags)
    finally:
        os.close(step)


def open_view(mounts: Sequence[Mount], process: int | None, open_root: OpenRoot | None) -> View:
    """Open the filesystem of some mounts, in the mount namespace of ``process`` if not in ours.

    ``open_root`` opens its root directory, given a descriptor on it; without, only the kernel's
    own answers are available.  Raises `PrivilegeError`, `BlockError` if it has shut down, and
    `TargetError` if it cannot be reached for another reason.
    """
    # A mount of the whole tree can show more places than one of a part.
    mounts = sorted(mounts, key=lambda mount: mount.root != "/")
    view = View(mounts[0], process)
    with ExitStack() as undo:
        undo.callback(view.close)
        try:
            if process is None:
                _take_visible(view, mounts)
            if view.mounts:
                _open_at(view, f"/proc/self/fd/{view.mounts[0][1]}", open_root)
            else:
                _privately(view, mounts[0], open_root)
        except OSError as error:
            raise _unreachable(view, error) from error
        undo.pop_all()
    return view


def _unreachable(view: View, error: OSError) -> Exception:
    if isinstance(error, PermissionError):
        return PrivilegeError(
            f"what is mounted at {view.point!r} can be reached only with CAP_SYS_ADMIN",
            hint="try as root; --offline reads the device itself",
        )
    if error.errno in SHUT_DOWN:
        return BlockError(
            f"the kernel says nothing of what is mounted at {view.point!r}: {error.strerror}"
        )
    return TargetError(f"cannot reach what is mounted at {view.point!r}: {error.strerror}")


def _take_visible(view: View, mounts: Sequence[Mount]) -> None:
    """Keep the mounts that their mount points lead to, and not to what covers them."""
    for mount in mounts:
        with contextlib.suppress(OSError):
            fd = view.own(os.open(mount.point, _NAME | os.O_NOFOLLOW))
            if mount_id(fd) == mount.id:
                view.mounts.append((mount, fd))


def _open_at(view: View, place: str, open_root: OpenRoot | None) -> None:
    """Open a mount for questions, and the root of its filesystem."""
    view.fd = view.own(os.open(place, _ASK))
    device = os.fstat(view.fd).st_dev
    # Subvolumes have numbers of their own, which no list of mounts has.
    if device != view.device and (os.major(device) or os.major(view.device)):
        raise FileNotFoundError(errno.ENOENT, "something else is mounted there")
    if open_root is None:
        return
    directory = view.own(open_root(view.fd))
    view.top = directory
    try:
        view.root = view.own(kernel.clone_mount(directory))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        # Before Linux 5.2: what other mounts cover cannot be distinguished from what is gone.
        view.root = directory


def _privately(view: View, mount: Mount, open_root: OpenRoot | None) -> None:
    """Open a mount that is covered, or in another namespace, from a private namespace.

    A thread has that namespace: it begins as a copy, in which the covering mounts are unmounted,
    and ends with the thread.  What was opened there stays open.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            # The namespace need not have a /proc, or not one that lists this process.
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _enter_copy(view.process)
                _uncover(mount, proc)
            finally:
                os.close(proc)
            _open_at(view, mount.point, open_root)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=work, name="whoseblock-namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _enter_copy(process: int | None) -> None:
    """Put this thread into a private copy of a mount namespace, our own or that of a process."""
    _call("unshare", _CLONE_FS)
    if process is not None:
        fd = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", fd, _CLONE_NEWNS)
        finally:
            os.close(fd)
    _call("unshare", _CLONE_NEWNS)
    _call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


def _uncover(wanted: Mount, proc: int) -> None:
    """Unmount, in this thread's own namespace, everything that covers a mount."""
    for _ in range(_MOST_COVERS):
        fd = os.open("thread-self/mountinfo", _ASK, dir_fd=proc)
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            cover = _cover_of(wanted, list(read_mounts(os.fsdecode(file.read()))))
        if cover is None:
            return
        _call("umount2", os.fsencode(cover.point), _MNT_DETACH)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _cover_of(wanted: Mount, mounts: list[Mount]) -> Mount | None:
    """Return the last mount that lies over a mount or over the way to it; None if none does."""
    by_id = {mount.id: mount for mount in mounts}
    place = (wanted.device, wanted.root, wanted.point)
    here = next((m for m in reversed(mounts) if (m.device, m.root, m.point) == place), None)
    if here is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    way = set()
    while here is not None and here.id not in way:
        way.add(here.id)
        here = by_id.get(here.parent)
    above = (mount for mount in reversed(mounts) if mount.id not in way)
    return next((mount for mount in above if _is_below(wanted.point, mount.point)), None)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library; raises OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
