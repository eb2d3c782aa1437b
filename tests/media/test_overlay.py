"""An overlay keeps writes off the image below it."""

from pathlib import Path

import pytest

from whoseblock.errors import MediaError
from whoseblock.media import EmulatedPmem, FileMedia, OverlayMedia
from whoseblock.ranges import ByteRange


def test_unwritten_sectors_of_an_overlay_stay_unreadable(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    below = EmulatedPmem(FileMedia(image), [ByteRange(512, 1024), ByteRange(4096, 512)])
    above = OverlayMedia(below)
    above.pwrite(512, b"x" * 512)
    with pytest.raises(MediaError) as error:
        above.pread(0, 8192)
    assert error.value.ranges == (ByteRange(1024, 512), ByteRange(4096, 512))
    # Half a sector needs its other half.
    with pytest.raises(MediaError):
        above.pwrite(1024, b"y" * 100)
    assert above.pread(0, 1024) == bytes(512) + b"x" * 512
    above.close()
