"""Filesystems that not every kernel can mount: quotas, a metadata directory, realtime groups.

The answers about the data device, offline and mounted, are compared with GETFSMAP and a walk.
"""

import os
import random
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support import questions
from tests.support.answers import answer_json, same
from tests.support.expected_rows import Expectation
from tests.support.filled_images import by_kernel
from tests.support.mounts import loop_device, mounted
from tests.support.random_files import Filler
from tests.support.truth import Truth
from tests.support.xfs_images import sparse_file
from tests.vm.guest.machine import Undo, modprobe, run, xfsprogs

import whoseblock
from whoseblock.fs.driver import Volume

_MIB = 1 << 20
_FOLDER = Path("/run/options")
_QUOTAS = ("uquota", "gquota", "pquota")


@pytest.fixture
def folder(undo: Undo) -> Path:
    modprobe("loop", "xfs")
    _FOLDER.mkdir()
    undo.then("rm", "-rf", _FOLDER)
    return _FOLDER


def make(image: Path, *options: str, block: int = 1024) -> None:
    sparse_file(image, 200 * _MIB)
    given = ["-q", "-f", "--unsupported", "-b", f"size={block}", "-d", "agcount=3"]
    run([xfsprogs("mkfs.xfs"), *given, *options, image])


def fill(root: bytes, *, block: int = 1024) -> None:
    """Fill a filesystem with some of everything, for many owners."""
    filler = Filler(root, "options", block=block)
    filler.folder_tree()
    filler.links()
    filler.special_files()
    filler.unwritten_and_holes()
    filler.shared_files()
    for number, path in enumerate(filler.files):
        # Quota keeps one record for each owner, in a file of its own.
        os.chown(path, number * 37, number * 91)
    for _ in range(200):
        with filler._tolerating():
            filler.random_step()


def compare(fs: Volume, truth: Truth, hidden: frozenset[int] = frozenset()) -> None:
    """Ask about every sort of row, its edges, whole groups and anywhere, with paths.

    The kernel opens no *hidden* inode for any process: on a mounted filesystem, the answer for
    those is only incomplete.
    """
    expectation = Expectation(truth)
    rng = random.Random(0)
    edges = questions.around_edges(truth, questions.sample_rows(truth, rng, 60))
    asked = rng.sample(edges, min(len(edges), 300)) + questions.everywhere(truth, rng, 60)
    for question, answer in zip(asked, fs.owners_many(asked), strict=True):
        if hidden.isdisjoint(
            row["inode"] for row in answer_json(answer)["owners"] if "inode" in row
        ):
            same(answer_json(answer), question, expectation)
        else:
            assert not answer.complete
            compare_rows(fs, question, expectation, hidden)
    for question in questions.large(truth):
        compare_rows(fs, question, expectation, hidden)


def compare_rows(
    fs: Volume, question: tuple[int, int], expectation: Expectation, hidden: frozenset[int]
) -> None:
    """Ask for the rows only; the mode of a hidden inode may be unknown."""
    answer = answer_json(fs.owners(*question, paths=False))
    for row in answer["owners"]:
        if row.get("inode") in hidden and row["what"] == "unknown":
            folder = stat.S_ISDIR(expectation.truth.inodes[row["inode"]].mode)
            row["what"] = "directory" if folder else "data"
    same(answer, question, expectation, paths=False, complete=answer["complete"])


def compare_both(image: Path, *options: str) -> Truth:
    """Compare offline and mounted answers; return the kernel's."""
    truth = by_kernel(image, *options)
    with whoseblock.open(image) as fs:
        compare(fs, truth)
    hidden = frozenset(
        number for number, inode in truth.inodes.items() if inode.links and not inode.paths
    )
    with (
        mounted(image, "ro", "norecovery", *options) as root,
        whoseblock.open(os.fsdecode(root)) as fs,
    ):
        compare(fs, truth, hidden)
    return truth


def nameless_owners(truth: Truth) -> int:
    """Count the regular files that own blocks and have no name."""
    owners = {row.inode for row in truth.rows if row.kind == "file"}
    known = (truth.inodes[number] for number in owners)
    return sum(not inode.paths and stat.S_ISREG(inode.mode) for inode in known)


def test_quotas_of_users_groups_and_projects(folder: Path) -> None:
    image = folder / "quota.img"
    make(image, "-m", "rmapbt=1")
    with mounted(image, *_QUOTAS) as root:
        fill(root)
    assert nameless_owners(compare_both(image)) == 3


def test_a_metadata_directory(folder: Path) -> None:
    image = folder / "metadir.img"
    make(image, "-m", "rmapbt=1,metadir=1", "-n", "parent=1")
    with mounted(image) as root:
        fill(root)
    compare_both(image)


def test_quotas_in_a_metadata_directory(folder: Path) -> None:
    image = folder / "metadir-quota.img"
    make(image, "-m", f"rmapbt=1,metadir=1,{','.join(_QUOTAS)}", "-n", "parent=1")
    with mounted(image) as root:
        fill(root)
    assert nameless_owners(compare_both(image)) >= 3


def test_realtime_groups(folder: Path) -> None:
    image, realtime = folder / "groups.img", sparse_file(folder / "realtime.img", 256 * _MIB)
    features = "rmapbt=1,reflink=1,metadir=1"
    make(image, "-m", features, "-r", f"rtdev={realtime},rgsize=64m", block=4096)
    with ExitStack() as stack:
        option = f"rtdev={stack.enter_context(loop_device(realtime))}"
        with mounted(image, option) as root:
            on_realtime = root + b"/realtime"
            os.mkdir(on_realtime)
            run([xfsprogs("xfs_io"), "-c", "chattr +t", os.fsdecode(on_realtime)])
            for number in range(20):
                path = Path(os.fsdecode(on_realtime)) / f"{number}"
                path.write_bytes(bytes(200_000))
            fill(root, block=4096)
        truth = compare_both(image, option)
    assert nameless_owners(truth) >= 2
