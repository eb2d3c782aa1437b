"""An image with sectors that cannot be read, as a file.

It is no mock of an error: a read gets EIO from the kernel.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.emulated_device import emulated

from whoseblock.ranges import ByteRange

__all__ = ["failing_device"]


@contextlib.contextmanager
def failing_device(image: Path, folder: Path, ranges: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """Serve an image of which some ranges cannot be read; give the file."""
    bad = [ByteRange(*one) for one in ranges]
    with emulated(image, folder, bad=bad, in_place=False) as served:
        yield served.device
