"""Features of ext4 that the kernels of test machines often lack, mounted and filled by the kernel.

Each answer is compared with GETFSMAP, with FIEMAP of every file, and with a walk of the tree:
mounted, and offline afterwards.
"""

import fcntl
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fs.ext4.names.test_paths import add_key, encrypt
from tests.support.ext4_images import Truth, edge_ranges, make_image
from tests.support.ext4_mounted import check_with_kernel, kernel_truth
from tests.support.kernel_oracle import walk
from tests.support.mounts import mounted
from tests.vm.guest.machine import Undo, modprobe

import whoseblock
from whoseblock.fs.base import FileOwner

_MIB = 1 << 20
_FOLDER = Path("/run/features")
#: linux/fs.h, linux/fsverity.h
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_ENABLE_VERITY = 0x40806685
_CASEFOLD_FL = 0x40000000
_FSXATTR = struct.Struct("=5I8x")
_PROJECT_INHERIT = 0x200


@pytest.fixture
def folder(undo: Undo) -> Path:
    modprobe("loop", "ext4")
    _FOLDER.mkdir()
    undo.then("rm", "-rf", _FOLDER)
    return _FOLDER


def fill(root: Path) -> None:
    """Make files of every kind, in ``root``, with names that need no folding."""
    rnd = random.Random(root.name)
    (root / "deep/er").mkdir(parents=True)
    for number in range(16):
        place = root / ("deep/er" if number % 3 else "deep") / f"Datei-{number:03}-{'x' * 20}"
        place.write_bytes(rnd.randbytes(rnd.randrange(1, 60_000)))
    os.link(root / "deep/er/Datei-001-xxxxxxxxxxxxxxxxxxxx", root / "second")
    files = [(root / f"deep/part{number}").open("wb") for number in range(2)]
    for _ in range(6):
        for file in files:
            file.write(bytes(70_000))
            file.flush()
            os.fsync(file.fileno())
    for file in files:
        file.close()
    with (root / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300_000)
        os.pwrite(file.fileno(), b"a" * 5000, 140_000)
    with (root / "sparse").open("wb") as file:
        for number in range(8):
            file.seek(number * 400_000)
            file.write(b"x" * 5000)
    os.symlink("l" * 200, root / "long")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "sparse", "user.large", b"Z" * 700)
    (root / "sparse").rename(root / "deep/sparse")


def check(image: Path, change: Callable[[Path], None]) -> Truth:
    """Mount an image, change it, and compare all that is answered with the kernel."""
    with mounted(image, kind="ext4") as place:
        change(Path(os.fsdecode(place)))
    # Mounted again, no block is held for a file that may grow.
    with mounted(image, kind="ext4") as place:
        truth = kernel_truth(place)
        check_answers(os.fsdecode(place), truth, os.fsdecode(place))
    check_answers(image, truth)
    return truth


def check_answers(target: Path | str, truth: Truth, mount: str | None = None) -> None:
    """Compare one question about everything, and ranges about edges, with the kernel."""
    size = truth.block_size
    with whoseblock.open(target) as fs:
        answer = fs.owners(0, len(truth.claims) * size)
        assert answer.complete
        check_with_kernel(answer, truth, mount)
        asked = random.Random(1).sample(edge_ranges(truth, random.Random(2), 20), 40)
        for one in fs.owners_many(asked):
            assert one.complete, one.notes
            check_with_kernel(one, truth, mount)
        row = next(row for row in answer if isinstance(row, FileOwner) and row.paths)
        assert fs.owners(row.start, row.length).owners[0] == row


def set_flags(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (old,) = struct.unpack("=i4x", fcntl.ioctl(descriptor, _GETFLAGS, bytes(8)))
        fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("=i4x", old | flags))
    finally:
        os.close(descriptor)


def set_project(path: Path, project: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flags, *others = _FSXATTR.unpack(fcntl.ioctl(descriptor, _FSGETXATTR, bytes(28)))
        others[2] = project
        fcntl.ioctl(descriptor, _FSSETXATTR, _FSXATTR.pack(flags | _PROJECT_INHERIT, *others))
    finally:
        os.close(descriptor)


def seal(path: Path) -> None:
    """Enable verity on a file, for which the kernel writes hashes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sha256 = 1
        fcntl.ioctl(descriptor, _ENABLE_VERITY, struct.pack("=3I116x", 1, sha256, 4096))
    finally:
        os.close(descriptor)


def test_casefolded_directories(folder: Path) -> None:
    options = ("-t", "ext4", "-b", "2048", "-O", "casefold", "-E", "encoding=utf8")
    image = make_image(folder / "disk.img", 24 * _MIB, *options)

    def change(root: Path) -> None:
        (root / "Falten").mkdir()
        set_flags(root / "Falten", _CASEFOLD_FL)
        fill(root / "Falten")
        for name in ("Straße", "ΣΊΣΥΦΟΣ", *(f"Name{number:03}" for number in range(90))):
            (root / "Falten" / name).write_bytes(b"x" * 3000)
        assert (root / "FALTEN").exists() is False
        assert (root / "Falten/STRASSE").exists()

    truth = check(image, change)
    assert {"/Falten/Straße", "/Falten/ΣΊΣΥΦΟΣ"} <= set().union(*truth.paths.values())


def test_quotas_of_users_groups_and_projects(folder: Path) -> None:
    modprobe("quota_v2")
    options = ("-t", "ext4", "-b", "2048", "-I", "512", "-O", "quota,project")
    image = make_image(folder / "disk.img", 24 * _MIB, *options, "-E", "quotatype=usr:grp:prj")

    def change(root: Path) -> None:
        (root / "project").mkdir()
        set_project(root / "project", 4711)
        fill(root / "project")
        for number, path in enumerate(sorted(root.rglob("Datei*"))):
            os.chown(path, number * 37, number * 91)

    check(image, change)
    with whoseblock.open(image) as fs:
        rows = [row for row in fs.owners(0, fs.size) if isinstance(row, FileOwner)]
    named = {row.detail for row in rows if isinstance(row.detail, str)}
    assert {"user quota", "group quota", "project quota"} <= named


def test_hashes_of_verity(folder: Path) -> None:
    options = ("-t", "ext4", "-b", "4096", "-O", "verity")
    image = make_image(folder / "disk.img", 24 * _MIB, *options)

    def change(root: Path) -> None:
        (root / "sealed").mkdir()
        fill(root / "sealed")
        (root / "large").write_bytes(random.Random(1).randbytes(700_000))
        for path in (root / "large", *(root / "sealed").rglob("Datei*")):
            seal(path)

    truth = check(image, change)
    (inode,) = (inode for inode, paths in truth.paths.items() if "/large" in paths)
    offsets = {one.offset for claims in truth.claims for one in claims if one.inode == inode}
    # The hashes begin at the next 64 KiB past the end of the file.
    assert max(offsets) >= 720_896 // 4096


@pytest.mark.parametrize("size", [16384, 65536])
def test_blocks_larger_than_a_page(size: int, folder: Path) -> None:
    options = ("-t", "ext4", "-b", str(size), "-N", "2000")
    image = make_image(folder / "disk.img", 200 * _MIB, *options)

    def change(root: Path) -> None:
        (root / "large").mkdir()
        fill(root / "large")

    assert check(image, change).block_size == size


@pytest.mark.parametrize("folded", [False, True], ids=["", "casefold"])
def test_encrypted_directories(folder: Path, *, folded: bool) -> None:
    features = "encrypt,casefold" if folded else "encrypt"
    encoding = ("-E", "encoding=utf8") if folded else ()
    options = ("-t", "ext4", "-b", "4096", "-O", features, *encoding)
    image = make_image(folder / "disk.img", 24 * _MIB, *options)
    key = os.urandom(32)
    with mounted(image, kind="ext4") as place:
        root = Path(os.fsdecode(place))
        encrypt(root / "secret", add_key(root, key), 3)
        if folded:
            set_flags(root / "secret", _CASEFOLD_FL)
        fill(root / "secret")
    with mounted(image, kind="ext4") as place:
        add_key(Path(os.fsdecode(place)), key)
        # With the key, FIEMAP and the walk know everything.
        truth = kernel_truth(place)
        check_answers(os.fsdecode(place), truth, os.fsdecode(place))
    with mounted(image, kind="ext4") as place:
        nokey = {inode: set(found.paths) for inode, found in walk(place).items()}
        assert nokey != truth.paths
        truth = truth._replace(paths=nokey)
        check_answers(os.fsdecode(place), truth, os.fsdecode(place))
    check_answers(image, truth)
