"""Every form of XFS without a reverse map: ranges around every kind of edge, by other oracles."""

import contextlib
import os
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import kernel_oracle, questions, system_calls, xfs_blocks, xfsdb
from tests.support.filled_images import add_attributes, make_content
from tests.support.mounts import loop_device, mounted
from tests.support.random_files import Filler
from tests.support.tools import Missing, need_loop_mounts, sees, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_file
from tests.support.xfs_scan_checks import check_scanned, fiemap, of_regular_files

_BASE = Geometry("", rmapbt=False, parent=False)
_OLD = replace(_BASE, version4=True, groups=3)
_FEWEST = "finobt=0,inobtcount=0,bigtime=0"

#: Filled by the kernel.
_FILLED = [
    replace(_BASE, name="1k-parent", block=1024, directory_block=16384, parent=True),
    replace(
        *(_BASE,),
        name="fewest-features",
        reflink=False,
        sparse_inodes=False,
        nrext64=False,
        more=("-m", _FEWEST),
    ),
    replace(_BASE, name="2k-no-finobt", block=2048, more=("-m", "finobt=0"), nrext64=False),
    replace(_BASE, name="no-inobtcount", inode=1024, more=("-m", "inobtcount=0"), beyond=77_777),
    replace(_BASE, name="sector4k", sector=4096, inode=2048, directory_block=65536),
    replace(_BASE, name="16k", block=16384, size=400 * MIB, sparse_inodes=False, parent=True),
    replace(_BASE, name="64k", block=65536, size=1200 * MIB, groups=2),
    replace(_BASE, name="external-log", group_blocks=17_001, reflink=False),
    replace(_BASE, name="metadir", size=320 * MIB, parent=True, more=("-m", "metadir=1,uquota")),
]

#: Filled by mkfs.xfs from a folder, with xfs_db as the oracle.
_POPULATED = [
    replace(_OLD, name="4-512", block=512, inode=256, directory_block=4096, groups=None),
    replace(_OLD, name="4-untyped", sector=4096, ftype=False),
    replace(_OLD, name="4-eager", block=1024, inode=256, more=("-l", "lazy-count=0")),
    replace(_OLD, name="4-first-log", inode=256, more=("-i", "projid32bit=0", "-l", "version=1")),
    replace(_OLD, name="4-64k", block=65536, inode=2048, size=1200 * MIB),
    replace(_OLD, name="4-8k", block=8192, directory_block=32768, inode=1024),
    replace(_BASE, name="ascii-ci", more=("-n", "version=ci")),
    replace(_BASE, name="32k", block=32768, size=600 * MIB, groups=2, inode=1024),
    replace(_BASE, name="realtime", block=1024, reflink=False),
    replace(_BASE, name="realtime-groups", parent=True, more=("-m", "metadir=1")),
]
_NAME = "geometry"
#: The form with btrees of several levels.
_DEEP = "1k-parent"


def _by_name(geometry: Geometry) -> str:
    return geometry.name


def _check(truth: Truth, *, version4: bool = False, log: Path | None = None) -> None:
    rng = random.Random(truth.image.name)
    edges = questions.around_edges(truth, questions.sample_rows(truth, rng, 70))
    edges += questions.everywhere(truth, rng, 100)
    assert len(edges) > 1000
    check_scanned(truth, edges, paths=False, free_scans=version4, log=log)
    rows = [(row.start, row.length) for row in truth.rows]
    check_scanned(truth, rows, paths=True, free_scans=version4, log=log)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder for mkfs.xfs to fill images from."""
    folder = tmp_path_factory.mktemp("content")
    rng = random.Random(19)
    make_content(os.fsencode(folder), rng, most=2200)
    add_attributes(os.fsencode(folder), rng)
    return folder


@pytest.mark.parametrize(_NAME, _FILLED, ids=_by_name)
def test_every_form_filled_by_the_kernel(geometry: Geometry, tmp_path: Path) -> None:
    need_loop_mounts()
    log = None
    if geometry.name == "external-log":
        log = sparse_file(tmp_path / "log", 32 * MIB)
        geometry = replace(geometry, more=("-l", f"logdev={log},size={32 * MIB}"))
    if geometry.name == "metadir" and not sees("-m", "metadir=1"):
        raise Missing("this mkfs.xfs makes no metadata directory: run tools/xfsprogs")
    image = make_image(tmp_path / "filled.img", geometry)
    _check(_filled(image, geometry, log), log=log)


def test_the_form_that_mkfs_of_the_system_makes(tmp_path: Path) -> None:
    need_loop_mounts()
    image = sparse_file(tmp_path / "filled.img", 320 * MIB)
    mkfs = xfsprogs("mkfs.xfs", newest=False)
    subprocess.run([mkfs, "-q", "-m", "rmapbt=0", image], check=True)
    _check(_filled(image, replace(_BASE, name="system"), None))


def _filled(image: Path, geometry: Geometry, log: Path | None) -> Truth:
    """Fill an image, and return the truth by xfs_db; FIEMAP and GETFSMAP must say the same."""
    with contextlib.ExitStack() as stack:
        devices = [f"logdev={stack.enter_context(loop_device(log))}"] if log else []
        with mounted(image, *devices) as root:
            filler = Filler(root, geometry.name, block=geometry.block, reflink=geometry.reflink)
            filler.fill(steps=150, names=8000 if geometry.name == _DEEP else 300)
            if geometry.name == _DEEP:
                _share_every_other_block(filler)
            if geometry.sparse_inodes:
                filler.sparse_inodes(geometry.inode)
            filler.fragmented_attributes()
        with mounted(image, "ro", "norecovery", *devices) as root:
            inodes = kernel_oracle.walk(root)
            free = [row for row in kernel_oracle.getfsmap(root) if row.kind == "free"]
            extents = fiemap(root)
    options = ["-l", str(log)] if log else []
    truth = xfs_blocks.truth_of(image, inodes, *options)
    assert [row for row in truth.rows if row.kind == "free"] == free
    assert of_regular_files(truth) == extents
    kinds = {(row.attr, row.extent_map) for row in truth.rows if row.kind == "file"}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    if geometry.name == _DEEP:
        assert _deep_trees(truth) == {b"bnolevel", b"refcntlevel", b"level"}
    return truth


def _share_every_other_block(filler: Filler) -> None:
    """Make the refcount btree of a group one of two levels."""
    block = filler.block
    path = filler.new_file(400 * block)
    with open(path, "rb") as one, open(filler.new_file(), "wb") as other:
        os.fsync(one.fileno())
        for at in range(0, 400 * block, 2 * block):
            system_calls.clone_range(one.fileno(), at, block, other.fileno(), at)


def _deep_trees(truth: Truth) -> set[bytes]:
    """Return the fields of the headers with the heights of trees of several levels."""
    commands = [
        line
        for group in range(truth.superblock.groups)
        for line in (f"agf {group}", "print bnolevel refcntlevel", f"agi {group}", "print level")
    ]
    return set(re.findall(rb"(\w+) = [2-9]", xfsdb.ask(truth.image, commands)))


@pytest.mark.parametrize(_NAME, _POPULATED, ids=_by_name)
def test_every_form_filled_by_mkfs(geometry: Geometry, content: Path, tmp_path: Path) -> None:
    xfsprogs("xfs_db")
    options: list[str] = []
    if geometry.name.startswith("realtime"):
        # mkfs.xfs puts no file there.
        section = sparse_file(tmp_path / "realtime", 300 * MIB)
        geometry = replace(geometry, more=(*geometry.more, "-r", f"rtdev={section}"))
        options = ["-R", str(section)]
    if "metadir=1" in geometry.more and not sees("-m", "metadir=1"):
        raise Missing("this mkfs.xfs makes no metadata directory: run tools/xfsprogs")
    image = make_image(tmp_path / "populated.img", geometry, content=content)
    truth = xfs_blocks.truth_of(image, xfsdb.walk(image), *options)
    assert any(row.extent_map for row in truth.rows)
    _check(truth, version4=geometry.version4)
