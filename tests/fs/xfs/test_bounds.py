"""Crafted images cost no more than what is really there: time and memory are bounded."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import xfsdb
from tests.support.damage import Overlay, overwrite, seal
from tests.support.images import MIB, Geometry, make_image
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts

import whoseblock
from whoseblock.errors import CorruptError
from whoseblock.fs.base import MAX_NOTES
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media import FileMedia

GIB = 1 << 30
_CORE = 176
_MODE, _FORMAT, _LINKS, _SIZE, _NEXTENTS, _BIG_NEXTENTS, _FLAGS2 = 2, 5, 16, 56, 76, 24, 120
_EXTENTS = 2
_MOST_BLOCKS = (1 << 21) - 1

#: Asks in a process of its own, and prints what came out, the seconds and the peak memory in MiB.
_CHILD = """
import resource, sys, time
import whoseblock
with whoseblock.open(sys.argv[1]) as fs:
    {question}
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(time.process_time(), memory, *told, sep="\\t")
"""


def measured(image: Path, question: str) -> tuple[float, int, list[str]]:
    """Ask in a process of its own; return CPU seconds, MiB, and what it put in `told`."""
    child = _CHILD.format(question=question.replace("\n", "\n    "))
    done = subprocess.run(
        [sys.executable, "-c", child, image], capture_output=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    seconds, memory, *told = done.stdout.decode().rstrip("\n").split("\t")
    return float(seconds), int(memory), told


def extent(offset: int, block: int, count: int) -> bytes:
    """Pack one extent."""
    return (offset << 73 | block << 21 | count).to_bytes(16, "big")


def forge_inode(image: Path, ino: int, *edits: tuple[int, bytes]) -> None:
    """Change an inode of an image and make its checksum right."""
    sb = xfsdb.superblock(image)
    bits = sb.block_log + sb.inodes_log
    start = (ino >> bits) * sb.group_size + (ino & (1 << bits) - 1) * sb.inode
    with image.open("r+b") as file:
        file.seek(start)
        data = file.read(sb.inode)
        assert data[:2] == b"IN"
        for at, new in edits:
            data = overwrite(data, at, new)
        file.seek(start)
        file.write(seal("inode", data))


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """Give a large and empty filesystem with few files, and their inode numbers."""
    need_loop_mounts()
    geometry = Geometry("large", size=64 * GIB, groups=4, parent=False, nrext64=False)
    image = make_image(tmp_path / "large.img", geometry)
    with mounted(image) as root:
        for name in (b"/evil", b"/file", b"/other"):
            Path(os.fsdecode(root + name)).write_bytes(b"x")
    named = {paths.paths[0]: ino for ino, paths in xfsdb.walk(image).items()}
    return image, named


def huge_directory(image: Path, ino: int, count: int) -> None:
    """Make a directory of extents that hold nothing of a directory."""
    extents = b"".join(
        extent(index * _MOST_BLOCKS, index % 4 << 22 | 1000, _MOST_BLOCKS) for index in range(count)
    )
    forge_inode(
        image,
        ino,
        (_MODE, (0o040755).to_bytes(2, "big")),
        (_FORMAT, bytes([_EXTENTS])),
        (_SIZE, (1 << 35).to_bytes(8, "big")),
        (_NEXTENTS, count.to_bytes(4, "big")),
        (_CORE, extents),
    )


@pytest.mark.parametrize("size", [1 << 35, 1 << 62, (1 << 64) - 1, 4096])
def test_a_directory_of_millions_of_blocks(large: tuple[Path, dict[str, int]], size: int) -> None:
    image, named = large
    huge_directory(image, named["/evil"], 7)
    forge_inode(image, named["/evil"], (_SIZE, size.to_bytes(8, "big")))
    forge_inode(image, named["/file"], (_LINKS, (2).to_bytes(4, "big")))
    seconds, memory, told = measured(
        image,
        f"paths = fs.paths({named['/file']})\n"
        f"fs.paths({named['/evil']})\n"
        "told = [*paths.paths, *paths.notes]",
    )
    assert told[0] == "/file"
    assert any("bad blocks" in note or "past its size" in note for note in told[1:]), told
    assert seconds < 5
    assert memory < 100


@pytest.mark.parametrize("questions", [1, 60])
def test_a_superblock_that_claims_half_a_million_groups(tmp_path: Path, questions: int) -> None:
    image = make_image(tmp_path / "small.img", Geometry("small", size=300 * MIB, inode=512))
    size = 16 * GIB
    with image.open("r+b") as file:
        data = file.read(512)
        for at, new in (
            (4, (512).to_bytes(4, "big")),
            (8, (size // 512).to_bytes(8, "big")),
            (84, (64).to_bytes(4, "big")),
            (88, (size // 512 // 64).to_bytes(4, "big")),
            (106, (1).to_bytes(2, "big")),
            (120, bytes([9, 9, 9, 0, 6])),
            (192, b"\0"),
        ):
            data = overwrite(data, at, new)
        file.seek(0)
        file.truncate(0)
        file.write(seal("superblock", data))
        file.truncate(size)
    seconds, memory, told = measured(
        image,
        f"answers = list(fs.owners_many([(0, {size})] * {questions}))\n"
        "fs.paths(64), fs.paths_many(range(64, 128))\n"
        "told = [answers[0].complete, len(answers[0]), answers[0][0].kind, *answers[0].notes]",
    )
    assert told[:3] == ["False", "1", "unknown"]
    assert len(told) - 3 <= MAX_NOTES + 1
    assert seconds < 10
    assert memory < 100


@pytest.mark.parametrize("parent", [True, False])
def test_many_links_in_a_deep_directory(tmp_path: Path, *, parent: bool) -> None:
    need_loop_mounts()
    depth, links = 1000, 3000
    image = make_image(tmp_path / "deep.img", Geometry("deep", size=300 * MIB, parent=parent))
    name = "n" * 200
    with mounted(image) as root:
        at = os.open(root, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        Path(f"/proc/self/fd/{at}/0").write_bytes(b"x" * 13 * 4096)
        for number in range(1, links):
            os.link("0", str(number), src_dir_fd=at, dst_dir_fd=at)
        os.close(at)
    rows = xfsdb.rows(image, xfsdb.superblock(image))
    row = next(row for row in rows if row.kind == "file" and row.length == 13 * 4096)
    for how in (f"fs.owners({row.start}, 1)", f"list(fs.owners_many([({row.start}, 1)] * 60))[0]"):
        seconds, memory, told = measured(
            image,
            f"answer = {how}\n"
            "paths = answer[0].paths\n"
            "told = [len(paths), sum(map(len, paths)), answer.complete, *answer.notes]",
        )
        assert 50 < int(told[0]) < links
        assert int(told[1]) <= 16 * MIB
        assert told[2] == "False"
        assert "paths too long" in told[3]
        assert seconds < 10
        assert memory < 200


def test_a_link_with_huge_extents(large: tuple[Path, dict[str, int]]) -> None:
    image, named = large
    huge_directory(image, named["/evil"], 1)
    forge_inode(
        image,
        named["/evil"],
        (_MODE, (0o120777).to_bytes(2, "big")),
        (_SIZE, (500).to_bytes(8, "big")),
    )
    media = FileMedia(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with whoseblock.open(Overlay(media, {})) as fs:
        assert isinstance(fs, XfsFilesystem)
        with pytest.raises(CorruptError, match="more blocks than a link needs"):
            fs.readlink(named["/evil"])
    media.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
