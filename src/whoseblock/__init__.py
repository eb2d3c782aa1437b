"""The Python API: the owners of failed ranges of a device or an image.

::

    import whoseblock

    with whoseblock.open("disk.img") as fs:
        for owner in fs.owners(1257472, 4096):
            print(owner)

`open` returns a `whoseblock.fs.driver.Volume`; docs/api.md describes it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from whoseblock.fs.driver import Volume
    from whoseblock.media.base import Media

__all__ = ["__version__", "open"]

__version__ = "0.1.0"


def open(  # noqa: A001 - like gzip.open: it is only ever used with the module's name
    target: "str | os.PathLike[str] | Media",
    *,
    companions: "Mapping[str, str | os.PathLike[str] | Media] | None" = None,
    log_device: "str | os.PathLike[str] | Media | None" = None,
    members: "Sequence[str | os.PathLike[str] | Media]" = (),
    offline: bool = False,
) -> "Volume":
    """Open the filesystem of a mount point, on a device, an image, or any `whoseblock.media.Media`.

    The kernel is asked about what is mounted, and the disk about all else, also about what the
    kernel has shut down; ``offline`` asks the disk in any case.  ``companions`` are the other
    devices of the filesystem by their role, such as ``{"log": "/dev/sdb1"}`` for an external log;
    ``log_device`` is short for that.  ``members`` are the other devices of a filesystem on several;
    ranges are of ``target``.  The result closes what it was made of, and is a context
    manager.  Raises `WhoseblockError` and its kin.
    """
    # Importing whoseblock must cost nothing; opening something may.
    from whoseblock.lookup import open_filesystem

    others = dict(companions or {})
    if log_device is not None:
        others["log"] = log_device
    return open_filesystem(target, companions=others, members=members, offline=offline)
