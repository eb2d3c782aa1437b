"""Symbolic links, attributes and times, compared with what the kernel says of the mounted image."""

import os
import stat
from collections.abc import Iterator

import pytest
from tests.support import xfsdb
from tests.support.filled_images import FILLED, Zoo
from tests.support.mounts import mounted
from tests.support.truth import Truth

import whoseblock
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.fs.xfs.format.attr import XFS_ATTR_ROOT, XFS_ATTR_SECURE

#: How getxattr(2) calls the namespaces; what begins with system. is kept among the trusted ones.
_NAMESPACES = {0: b"user.", XFS_ATTR_ROOT: b"trusted.", XFS_ATTR_SECURE: b"security."}


@pytest.fixture(params=FILLED)
def truth(zoo: Zoo, request: pytest.FixtureRequest) -> Truth:
    return zoo.to_mount(request.param)


@pytest.fixture
def fs(truth: Truth) -> Iterator[XfsFilesystem]:
    with whoseblock.open(truth.image) as opened:
        assert isinstance(opened, XfsFilesystem)
        yield opened


def _files(root: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each inode below a folder once, with a path of it."""
    seen = set()
    for folder, folders, files in os.walk(root):
        for path in (folder, *(folder + b"/" + name for name in folders + files)):
            ino = os.lstat(path).st_ino
            if ino not in seen:
                seen.add(ino)
                yield ino, path


def test_every_link_attribute_and_time(truth: Truth, fs: XfsFilesystem) -> None:
    links = values = 0
    longest = 0
    with mounted(truth.image, "ro", "norecovery") as root:
        for ino, path in _files(root):
            status = os.lstat(path)
            core = fs.inodes.get(ino).core
            assert (core.mode, core.nlink) == (status.st_mode, status.st_nlink)
            assert core.time_ns(core.raw_mtime) == status.st_mtime_ns
            assert core.time_ns(core.raw_ctime) == status.st_ctime_ns
            if stat.S_ISLNK(status.st_mode):
                links += 1
                assert fs.readlink(ino) == os.readlink(path)
            names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
            expected = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in names
                if not name.startswith(b"system.")
            }
            found = {
                _NAMESPACES[namespace] + name: value
                for (namespace, name), value in fs.attributes(ino).items()
                if not (namespace == XFS_ATTR_ROOT and name.startswith(b"SGI_ACL"))
            }
            assert found == expected
            values += len(found)
            longest = max(longest, *map(len, found.values()), 0)
    # The fill has links in the inode and remote ones, and attributes in every form: at random, but
    # on each image some value of many blocks.
    assert links > 2
    assert values > 100
    assert longest > 32 * 1024


def test_generations_agree_with_xfs_db(truth: Truth, fs: XfsFilesystem) -> None:
    inodes = sorted(truth.inodes)[:200:10]
    commands = [line for ino in inodes for line in (f"inode {ino}", "print core.gen")]
    printed = xfsdb.ask(truth.image, commands).split(b"\n")
    assert [fs.inodes.get(ino).core.gen for ino in inodes] == [
        int(line.split()[-1]) for line in printed if line
    ]
