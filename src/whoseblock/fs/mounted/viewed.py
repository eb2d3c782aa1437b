"""The base of all mounted filesystems: the mount that a `View` shows."""

from whoseblock.closing import Closing
from whoseblock.fs.arguments import check_open
from whoseblock.fs.base import Progress, no_progress
from whoseblock.fs.driver import MountedVolume
from whoseblock.fs.mounted.view import View
from whoseblock.media.mounts import find_mounts

__all__ = ["ViewedVolume"]


class ViewedVolume(Closing, MountedVolume):
    """The filesystem that ``view`` shows, which is closed with it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.progress: Progress = no_progress
        self._closed = False

    @property
    def mount_point(self) -> str:
        """The mount point at which it was opened."""
        return self.view.point

    @property
    def root_fd(self) -> int | None:
        """A descriptor of its root directory, None if unreachable."""
        return self.view.top

    def fileno(self) -> int:
        """Return a descriptor on it, for syncfs(2) and FIFREEZE."""
        return self.view.fd

    @property
    def is_read_only(self) -> bool:
        """Whether the filesystem is read-only at this moment."""
        _, mounts = find_mounts(self.view.device)
        return "ro" in (mounts[0].options if mounts else self.view.options)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes of every answer that do not make it incomplete."""
        if self.view.process is None:
            return ()
        process, point = self.view.process, self.view.point
        return (f"it is mounted only in the mount namespace of process {process}, at {point}",)

    def _check_open(self) -> None:
        check_open(self.view.point, closed=self._closed)

    def close(self) -> None:
        """Close the filesystem; a second time has no effect."""
        self._closed = True
        self.view.close()
