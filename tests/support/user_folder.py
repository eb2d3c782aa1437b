"""A FUSE filesystem that a user has mounted, and whose files claim to belong to root."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.emulated_device import need_fuse
from tests.support.tools import CHECKOUT, need_root

__all__ = ["folder_of_user"]

_SERVER = """
import errno, json, os, stat, sys
os.environ["FUSE_LIBRARY_NAME"] = "fuse3"
import mfusepy

class Folder:
    use_ns = True

    def __init__(self, files):
        self.files = {f"/{name}": (bytes.fromhex(one[0]), one[1]) for name, one in files.items()}

    def getattr(self, path, handle=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2, "st_uid": 0, "st_gid": 0}
        if path not in self.files:
            raise OSError(errno.ENOENT, "")
        data, time = self.files[path]
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_uid": 0, "st_gid": 0,
                "st_size": len(data), "st_mtime": time}

    def init(self, path):
        print("served", flush=True)

    def readdir(self, path, handle):
        return [".", ".."]

    def read(self, path, length, offset, handle):
        return self.files[path][0][offset : offset + length]

user, folder = int(sys.argv[1]), sys.argv[2]
# libfuse names the real user to the kernel, as fusermount3 does for a user who may use allow_other.
os.setresuid(user, 0, 0)
mfusepy.FUSE(Folder(json.load(sys.stdin)), folder, foreground=True, allow_other=True)
"""


@contextlib.contextmanager
def folder_of_user(
    folder: Path, user: int, files: Mapping[str, tuple[bytes, int]]
) -> Iterator[Path]:
    """Serve files, each its content and its time in nanoseconds, at a new folder."""
    need_root()
    need_fuse()
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(user), folder],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        with server.stdin:
            content = {name: [data.hex(), time] for name, (data, time) in files.items()}
            server.stdin.write(json.dumps(content).encode())
        assert server.stdout.readline() == b"served\n"
        # The kernel has answered init by then.
        assert os.stat(folder).st_uid == 0
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)
        server.stdout.close()
        server.kill()
        server.wait()
