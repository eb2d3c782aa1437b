"""Paths below a directory, opened by openat2 and without it: the same files, the same refusals."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.mounts import small_filesystem
from tests.support.tools import run

from whoseblock.fs.mounted import beneath

MIB = 1 << 20
_LINK = os.O_PATH | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_NOFOLLOW
#: A number that no kernel has.
_NO_SYSTEM_CALL = 100_000

LINKS = {
    "link": "d",
    "dangling": "nowhere",
    "loop": "loop",
    "absolute": "/etc",
    "d/up": "..",
    "into": "there/inside",
    "beside": "../d",
}
PATHS = [
    b"",
    *b". d d/ d/e d/e/file d/./e d//e d/e/. fifo d/none d/e/file/below \xff".split(),
    *b"/ /d .. ../x d/e/../../.. there/..".split(),
    *b"link link/e dangling d/up d/up/d loop loop/x absolute into beside".split(),
    *b"there there/inside there/. bound bound/file waits".split(),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Provide a folder with links, and with another filesystem and a bind of its own in it."""
    unused = tmp_path_factory.mktemp("unused")
    with small_filesystem("tmpfs", unused, MIB) as top, ExitStack() as undo:
        (top / "d/e").mkdir(parents=True)
        (top / "d/e/file").write_bytes(b"x")
        os.mkfifo(top / "fifo")
        for name, target in LINKS.items():
            (top / name).symlink_to(target)
        (top / "there").mkdir()
        (top / "bound").mkdir()
        (top / "waits").touch()
        for option, what, place in (
            ("-ttmpfs", Path("tmpfs"), top / "there"),
            ("--bind", top / "d/e", top / "bound"),
            ("--bind", top / "fifo", top / "waits"),
        ):
            run(["mount", option, what, place])
            undo.callback(run, ["umount", place])
        (top / "there/inside").mkdir()
        yield top


def opened(top: Path, path: bytes, flags: int) -> tuple[int, int, int] | bool:
    """Return the file that a path leads to, or whether its name does not exist."""
    directory = os.open(top, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = beneath.open_beneath(directory, path, flags)
    except OSError as error:
        return error.errno == errno.ENOENT
    finally:
        os.close(directory)
    try:
        status = os.fstat(fd)
        assert not os.get_inheritable(fd)
        return status.st_dev, status.st_ino, status.st_mode
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [_LINK, os.O_PATH, _LINK | os.O_DIRECTORY, _READ])
def test_without_openat2(tree: Path, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernel = {path: opened(tree, path, flags) for path in PATHS}
    monkeypatch.setattr(beneath, "_SYS_OPENAT2", _NO_SYSTEM_CALL)
    by_names = {path: opened(tree, path, flags) for path in PATHS}
    assert by_names == by_kernel
    # A way back that stays inside is refused, too.
    assert opened(tree, b"d/..", flags) is False
    assert isinstance(by_kernel[b"d/e"], tuple)
    assert by_kernel[b"there"] is by_kernel[b"bound"] is by_kernel[b"link/e"] is False
