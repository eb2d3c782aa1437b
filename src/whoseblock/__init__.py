"""The Python API of whoseblock, which reports the owners of failed ranges of a device::

    import whoseblock

    with whoseblock.open("disk.img") as fs:
        for owner in fs.owners(1257472, 4096):
            print(owner)

`open` returns a `whoseblock.fs.driver.Volume`.  docs/api.md describes the API.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from whoseblock.fs.driver import Volume
    from whoseblock.media.base import Media

__all__ = ["__version__", "open"]

__version__ = "0.1.0"


def open(  # noqa: A001 - like gzip.open: it is only ever used with the module's name
    target: "str | os.PathLike[str] | Media",
    *,
    companions: "Mapping[str, str | os.PathLike[str] | Media] | None" = None,
    log_device: "str | os.PathLike[str] | Media | None" = None,
    offline: bool = False,
) -> "Volume":
    """Open the filesystem of a mount point, on a device, an image, or any `whoseblock.media.Media`.

    If the filesystem is mounted, the kernel is queried, unless ``offline`` is true or the kernel
    has shut it down.  Otherwise the device is read.  ``companions`` are further devices of the
    filesystem by their role, such as ``{"log": "/dev/sdb1"}`` for an external log; ``log_device``
    is short for that.  The result is a context manager, which closes the devices.  Raises
    `WhoseblockError` and its subclasses.
    """
    # Importing whoseblock must be cheap.
    from whoseblock.lookup import open_filesystem

    others = dict(companions or {})
    if log_device is not None:
        others["log"] = log_device
    return open_filesystem(target, companions=others, offline=offline)
