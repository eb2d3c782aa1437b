"""A file that is an image with sectors that cannot be read, through FUSE.

``python -m tests.support.failing IMAGE FOLDER START+LENGTH…`` serves FOLDER/device until it is
unmounted.  It is no mock of an error: whoever reads it gets EIO from the kernel.
"""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.tools import CHECKOUT, Missing

__all__ = ["failing_device"]


def _serve(image: str, folder: str, ranges: Sequence[str]) -> None:
    # Only where libfuse is can it be imported.
    import mfusepy

    bad = [tuple(map(int, text.split("+"))) for text in ranges]
    descriptor = os.open(image, os.O_RDONLY)
    size = os.fstat(descriptor).st_size

    class Device(mfusepy.Operations):  # type: ignore[misc]
        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            del fh
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path != "/device":
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": size}

        def readdir(self, path: str, fh: int) -> list[str]:
            del path, fh
            return [".", "..", "device"]

        def open(self, path: str, flags: int) -> int:
            del path, flags
            return 0

        def read(self, path: str, length: int, offset: int, fh: int) -> bytes:
            del path, fh
            if any(start < offset + length and offset < start + many for start, many in bad):
                raise mfusepy.FuseOSError(errno.EIO)
            return os.pread(descriptor, length, offset)

    # direct_io: a page cache would ask for more than the reader does, and fail for the neighbours.
    mfusepy.FUSE(Device(), folder, foreground=True, nothreads=True, direct_io=True, ro=True)


@contextlib.contextmanager
def failing_device(image: Path, folder: Path, ranges: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """Serve an image of which some ranges cannot be read; give the file."""
    try:
        import mfusepy  # noqa: F401 - whether libfuse is there shows here
    except (ImportError, OSError) as error:
        raise Missing(f"no FUSE: install the package libfuse3-3 ({error})") from error
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Missing("/dev/fuse is not here, or not for us")
    folder.mkdir(exist_ok=True)
    texts = [f"{start}+{length}" for start, length in ranges]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.failing", image, folder, *texts],
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
    )
    device = folder / "device"
    try:
        for _ in range(100):
            if device.exists() or server.poll() is not None:
                break
            time.sleep(0.1)
        if not device.exists():
            raise Missing(f"FUSE does not serve here: {server.stderr and server.stderr.read()!r}")
        yield device
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=False)
        server.terminate()
        server.wait(timeout=20)
        if server.stderr is not None:
            server.stderr.close()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], sys.argv[3:])
