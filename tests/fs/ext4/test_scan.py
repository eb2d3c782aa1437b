"""The memory of a scan grows with the answer, not with the filesystem."""

import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.ext4_images import make_image

import whoseblock
from whoseblock.fs.ext4.filesystem import Ext4Filesystem
from whoseblock.fs.ext4.scan import InodeScan
from whoseblock.fs.ext4.static import FixedMetadata
from whoseblock.fs.scan.bulk import run_bulk_scan
from whoseblock.fs.scan.engine import Found, Wanted, run_scan

MIB = 1 << 20


def peak(image: Path, look: Callable[[InodeScan, Wanted, Iterable[int]], Found]) -> int:
    """Return the most memory that a second scan of an image takes, in bytes."""
    with whoseblock.open(image) as fs:
        assert isinstance(fs, Ext4Filesystem)
        inodes = InodeScan(fs.volume, FixedMetadata(fs.volume))
        inodes.piece = inodes.large_piece = 1 << 16
        wanted, groups = Wanted([(0, 9000)]), range(fs.volume.groups)
        count = len(look(inodes, wanted, groups).extents)
        tracemalloc.start()
        found = look(inodes, wanted, groups)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found.extents) == count > 0
    return size


def test_a_scan_holds_one_piece_of_a_table(tmp_path: Path) -> None:
    images = []
    for count in (1000, 4000):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}").touch()
        image = tmp_path / f"{count}.img"
        words = ("-t", "ext4", "-b", "4096", "-N", "10000")
        images.append(make_image(image, 64 * MIB, *words, folder=folder))
    scans: tuple[Callable[[InodeScan, Wanted, Iterable[int]], Found], ...] = (
        lambda inodes, wanted, groups: run_scan(inodes.batches(groups), wanted),
        lambda inodes, wanted, groups: run_bulk_scan(inodes.tables(groups), wanted),
    )
    for look in scans:
        small, large = (peak(image, look) for image in images)
        # The larger one has four times as many inodes.
        assert large < small * 1.5
