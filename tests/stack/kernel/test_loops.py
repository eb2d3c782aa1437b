"""Files behind loop devices, some of which have another name in this mount namespace."""

from pathlib import Path

import pytest
from tests.support.mounts import loop_device, loop_device_elsewhere

from whoseblock.fs.mounted.fiemap import file_extents
from whoseblock.stack.base import Layer
from whoseblock.stack.kernel.host import Host
from whoseblock.stack.kernel.loops import find_backing_file, find_backing_segments

SIZE = 1 << 20


def segments_of(loop: str) -> int:
    host = Host()
    found = find_backing_segments(
        host, Path(loop).name, lambda name: Layer(name, 1 << 40, "disk"), file_extents
    )
    return len(found)


def test_another_file_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * SIZE)
    if Host().find_device_by_number(image.stat().st_dev) is None:
        pytest.skip("the folder of the tests is not on one block device")
    with loop_device(image) as loop:
        assert segments_of(loop) == 1
    with loop_device_elsewhere(image) as loop:
        backing = find_backing_file(Host(), Path(loop).name)
        assert backing is not None
        assert segments_of(loop) == 0
        Path(backing.path).write_bytes(b"y" * SIZE)
        assert segments_of(loop) == 0
