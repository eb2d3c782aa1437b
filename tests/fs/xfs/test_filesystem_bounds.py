"""Crafted images cost no more than what is really there: time and memory are bounded."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.crafted_images import (
    GIB,
    LINKS,
    MODE,
    NLINK,
    SIZE,
    claim_groups,
    forge_directory,
    forge_inode,
    make_large,
    make_links,
)
from tests.support.image_damage import Overlay
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image

import whoseblock
from whoseblock.errors import CorruptError
from whoseblock.fs.base import MAX_NOTES
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media import FileMedia

#: Asks in a process of its own, and prints what came out, the seconds and the peak memory in MiB.
_CHILD = """
import sys, time
import whoseblock
with whoseblock.open(sys.argv[1]) as fs:
    {question}
# Not ru_maxrss, in which the memory of the process before exec(2) counts.
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(time.process_time(), int(peak) // 1024, *told, sep="\\t")
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


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """Provide a large and empty filesystem with few files, and their inode numbers."""
    need_loop_mounts()
    image = tmp_path / "large.img"
    return image, make_large(image)


@pytest.mark.parametrize("size", [1 << 35, 1 << 62, (1 << 64) - 1, 4096])
def test_a_directory_of_millions_of_blocks(large: tuple[Path, dict[str, int]], size: int) -> None:
    image, named = large
    forge_directory(image, named["/evil"], 7, size)
    forge_inode(image, named["/file"], (NLINK, (2).to_bytes(4, "big")))
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
    claim_groups(image, size)
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
    image = tmp_path / "deep.img"
    start, _ = make_links(image, parent=parent)
    for how in (f"fs.owners({start}, 1)", f"list(fs.owners_many([({start}, 1)] * 60))[0]"):
        seconds, memory, told = measured(
            image,
            f"answer = {how}\n"
            "paths = answer[0].paths\n"
            "told = [len(paths), sum(map(len, paths)), answer.complete, *answer.notes]",
        )
        assert 50 < int(told[0]) < LINKS
        assert int(told[1]) <= 16 * MIB
        assert told[2] == "False"
        assert "paths too long" in told[3]
        assert seconds < 10
        assert memory < 200


def test_a_link_with_huge_extents(large: tuple[Path, dict[str, int]]) -> None:
    image, named = large
    forge_directory(image, named["/evil"], 1)
    forge_inode(
        image,
        named["/evil"],
        (MODE, (0o120777).to_bytes(2, "big")),
        (SIZE, (500).to_bytes(8, "big")),
    )
    media = FileMedia(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with whoseblock.open(Overlay(media, {})) as fs:
        assert isinstance(fs, XfsFilesystem)
        with pytest.raises(CorruptError, match="more blocks than a link needs"):
            fs.readlink(named["/evil"])
    media.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
