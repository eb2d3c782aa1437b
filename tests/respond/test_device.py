"""Devices that are open exclusively."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from tests.support.mounts import loop_device, loop_device_elsewhere

from whoseblock.ranges import ByteRange
from whoseblock.respond.device import Device
from whoseblock.respond.exceptions import NotNowError

SIZE = 1 << 20


@pytest.mark.parametrize("attach", [loop_device, loop_device_elsewhere])
def test_an_image_is_not_written_once_a_loop_device_reads_it(
    tmp_path: Path, attach: Callable[[Path], AbstractContextManager[str]]
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * SIZE)
    with closing(Device(str(image), writable=True, exclusive=True)) as device:
        with attach(image), pytest.raises(NotNowError, match="in use by"):
            device.zero([ByteRange(0, 4096)])
        assert image.read_bytes() == b"x" * SIZE
        device.zero([ByteRange(0, 4096)])
    assert image.read_bytes() == bytes(4096) + b"x" * (SIZE - 4096)
