"""Paths in large and deep trees equal a walk of the mounted filesystem."""

import os
import random
from collections import defaultdict
from pathlib import Path

import pytest
from tests.support.ext4_images import make_image
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, run

import whoseblock

MIB = 1 << 20
#: Where the first block of a directory with an htree has the number of its levels.
_LEVELS_AT = 0x1E
_HOSTILE = (
    b"new\nline",
    b"\x1b[31mred\x1b[0m",
    b"\xff\xfe\x80",
    b"-rf",
    b" (deleted)",
    b"  ",
    b"...",
    b"\\",
    b"a\tb",
    "\u202egnp".encode(),
    b"N" * 255,
)


def walk(root: bytes) -> dict[int, set[bytes]]:
    """Return all paths of each inode, by a walk that needs no path longer than a name."""
    found: dict[int, set[bytes]] = defaultdict(set)
    found[os.stat(root).st_ino].add(b"/")
    todo = [(os.open(root, os.O_RDONLY), b"")]
    while todo:
        folder, above = todo.pop()
        for entry in os.scandir(folder):
            name = os.fsencode(entry.name)
            path = above + b"/" + name
            found[entry.inode()].add(path)
            if entry.is_dir(follow_symlinks=False):
                todo.append((os.open(name, os.O_RDONLY, dir_fd=folder), path))
        os.close(folder)
    return found


def compare(image: Path, expected: dict[int, set[bytes]]) -> None:
    """Compare all paths in one search, and a sample with a search each."""
    with whoseblock.open(image) as fs:
        found = fs.paths_many(expected)
        assert all(one.complete for one in found.values())
        decoded = {inode: {os.fsencode(p) for p in one.paths} for inode, one in found.items()}
        assert decoded == expected
        for inode in random.Random(1).sample(sorted(expected), min(len(expected), 25)):
            alone = fs.paths(inode)
            assert alone == found[inode]


@pytest.mark.parametrize("options", ["-t ext4 -b 1024 -g 1024 -N 16384", "-t ext2 -b 1024"])
def test_hard_links_deep_trees_and_hostile_names(options: str, tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk.img", 64 * MIB, *options.split())
    rnd = random.Random(7)
    with mounted(image, kind=options.split()[1]) as place:
        root = Path(os.fsdecode(place))
        folders = [root]
        for number in range(150):
            folders.append(rnd.choice(folders) / f"d{number}")
            folders[-1].mkdir()
        for number in range(60):
            path = rnd.choice(folders) / f"file{number}"
            path.write_bytes(b"x" * 100)
            for link in range(rnd.randrange(6)):
                os.link(path, rnd.choice(folders) / f"link{number}_{link}")
        for name in _HOSTILE:
            (root / os.fsdecode(name)).mkdir()
            (root / os.fsdecode(name) / os.fsdecode(name[::-1])).touch()
        at = os.open(root, os.O_RDONLY)
        for level in range(150):
            deeper = f"{level:03}_{'deep' * 24}"
            os.mkdir(deeper, dir_fd=at)
            below = os.open(deeper, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.link(root / _HOSTILE[3].decode() / "fr-", "bottom", dst_dir_fd=at)
        os.close(at)
        # An htree of two levels.
        (root / "wide").mkdir()
        for number in range(3000):
            os.link(root / "-rf/fr-", root / f"wide/{number:06}{'w' * 90}")
        (root / "wide/one").mkdir()
        expected = walk(place)
    assert max(len(path) for paths in expected.values() for path in paths) > 15_000
    compare(image, expected)


def test_an_htree_of_three_levels(tmp_path: Path) -> None:
    need_loop_mounts()
    options = ("-t", "ext4", "-b", "1024", "-O", "large_dir,^has_journal", "-N", "4096")
    image = make_image(tmp_path / "disk.img", 96 * MIB, *options)
    rnd = random.Random(3)
    with mounted(image, kind="ext4") as place:
        os.mkdir(place + b"/large")
        at = os.open(place + b"/large", os.O_RDONLY)
        files = []
        for number in range(2):
            Path(os.fsdecode(place), f"file{number}").touch()
            files.append(place + b"/file%d" % number)
        for number in range(30_000):
            name = f"{number:06}_".encode() + bytes(rnd.choices(range(65, 91), k=240))
            os.link(files[number % 2], name, dst_dir_fd=at)
        os.mkdir(b"below", dir_fd=at)
        os.close(at)
        expected = walk(place)
    words = run(["debugfs", "-R", "blocks /large", image]).split()
    with image.open("rb") as file:
        file.seek(int(words[0]) * 1024 + _LEVELS_AT)
        assert file.read(1)[0] >= 2
    compare(image, expected)
