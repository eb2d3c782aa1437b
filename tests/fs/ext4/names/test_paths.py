"""Paths in odd directories: encrypted ones, and files without a name."""

import fcntl
import os
import shutil
import struct
from pathlib import Path

import pytest
from tests.support.ext4_images import make_image
from tests.support.mounts import frozen, mounted
from tests.support.tools import Missing, need_loop_mounts

import whoseblock
from whoseblock.fs.base import FileOwner

# linux/fscrypt.h
_ADD_KEY = 3 << 30 | 80 << 16 | ord("f") << 8 | 23
_SET_POLICY = 2 << 30 | 12 << 16 | ord("f") << 8 | 19
_BY_IDENTIFIER, _AES_XTS, _AES_CTS = 2, 1, 4


def add_key(folder: Path, key: bytes | None = None) -> bytes:
    """Add to the kernel a key for a filesystem, any or ``key``, and return its identifier."""
    head = struct.pack("=II32sII32s", _BY_IDENTIFIER, 0, bytes(32), 32, 0, bytes(32))
    argument = bytearray(head + (key or os.urandom(32)))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _ADD_KEY, argument)
    except OSError as error:
        raise Missing(f"this kernel has no encryption of files: {error}") from error
    finally:
        os.close(descriptor)
    return bytes(argument[8:24])


def encrypt(folder: Path, identifier: bytes, flags: int) -> None:
    """Make an encrypted directory."""
    folder.mkdir()
    policy = struct.pack("=5B3s16s", 2, _AES_XTS, _AES_CTS, flags, 0, bytes(3), identifier)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SET_POLICY, policy)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("features", ["encrypt", "encrypt,^dir_index", "encrypt,inline_data"])
def test_names_without_their_key_are_the_kernels(features: str, tmp_path: Path) -> None:
    need_loop_mounts()
    options = ("-t", "ext4", "-b", "4096", "-I", "256", "-O", features)
    image = make_image(tmp_path / "disk.img", 40 << 20, *options)
    with mounted(image, kind="ext4") as place:
        root = Path(place.decode())
        identifier = add_key(root)
        for name, flags in (("small", 3), ("large", 0)):
            encrypt(root / name, identifier, flags)
        (root / "small/below").mkdir()
        for name in ("a", "L" * 200, "M" * 255):
            (root / "small/below" / name).write_bytes(b"x" * 5000)
        os.link(root / "small/below/a", root / "small/second")
        for number in range(200):
            (root / f"large/name{number}{'y' * 40}").touch()
    expected: dict[int, set[str]] = {}
    # No key comes with the second mount.
    with mounted(image, "ro", kind="ext4") as place:
        root = Path(place.decode())
        for path in root.rglob("*"):
            expected.setdefault(path.lstat().st_ino, set()).add(f"/{path.relative_to(root)}")
    with whoseblock.open(image) as fs:
        found = fs.paths_many(expected)
        assert all(one.complete for one in found.values())
        assert {inode: set(one.paths) for inode, one in found.items()} == expected
        encrypted = [inode for inode, one in found.items() if one.encrypted_name]
        assert len(encrypted) == len(expected) - 3
        rows = [row for row in fs.owners(0, image.stat().st_size) if isinstance(row, FileOwner)]
        assert {row.encrypted_name for row in rows if row.inode in encrypted} == {True}


@pytest.mark.parametrize("features", ["^orphan_file", "orphan_file"])
def test_a_deleted_file_that_is_open_has_no_name(features: str, tmp_path: Path) -> None:
    need_loop_mounts()
    options = ("-t", "ext4", "-b", "4096", "-O", features)
    image = make_image(tmp_path / "disk.img", 40 << 20, *options)
    copy = tmp_path / "copy.img"
    with mounted(image, kind="ext4") as place:
        path = Path(place.decode()) / "deleted"
        with path.open("wb") as file:
            file.write(b"x" * 50_000)
            file.flush()
            os.fsync(file.fileno())
            inode = path.stat().st_ino
            path.unlink()
            # The journal is to be replayed for as long as it is mounted and not frozen.
            shutil.copyfile(image, copy)
            with whoseblock.open(copy) as fs:
                answer = fs.owners(0, copy.stat().st_size)
                assert not answer.complete
                assert any("journal" in note for note in answer.notes)
            with frozen(place):
                shutil.copyfile(image, copy)
    with whoseblock.open(copy) as fs:
        answer = fs.owners(0, copy.stat().st_size)
        assert answer.complete
        paths = fs.paths(inode)
        assert (paths.paths, paths.unlinked, paths.complete) == ((), True, True)
        rows = [row for row in answer if isinstance(row, FileOwner) and row.inode == inode]
        assert sum(row.length for row in rows) >= 50_000
        assert all(row.unlinked is True for row in rows)
