"""The daemon as a real process, on a real kernel whose disk really fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.emulated import Emulated, emulated
from tests.support.images import MIB, Geometry, make_image
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts
from tests.support.watching import until, watching
from tests.test_emulate_kernel import BLOCK, fill, forget, place_of

from whoseblock.ranges import ByteRange


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need_loop_mounts()
    return make_image(tmp_path / "disk", Geometry("watched", size=32 * MIB, parent=False))


@contextlib.contextmanager
def failing(image: Path, folder: Path) -> Iterator[tuple[Emulated, str, Path]]:
    """Give what serves an image, the loop device on it, and where it is mounted."""
    with (
        emulated(image, folder) as served,
        served.loop() as loop,
        mounted(loop, loop=False) as root,
    ):
        yield served, loop.name, Path(os.fsdecode(root))


def fail(served: Emulated, root: Path, path: Path, block: int) -> int:
    """Have a block of a file fail, and somebody read it; give where it is."""
    at = place_of(root, path, block)
    served.add(ByteRange(at, BLOCK))
    forget(path)
    with path.open("rb", 0) as file, pytest.raises(OSError, match="Input/output error"):
        os.pread(file.fileno(), BLOCK, block * BLOCK)
    return at


def test_a_failed_read_is_attributed_to_the_file(image: Path, tmp_path: Path) -> None:
    with failing(image, tmp_path / "at") as (served, loop, root):
        fill(root / "hit", "hit")
        fill(root / "other", "other")
        os.sync()
        with watching(tmp_path) as daemon:
            at = fail(served, root, root / "hit", 20)
            (history,) = until(
                lambda: [
                    one for one in daemon.histories() if one.failure.device == loop and one.findings
                ]
            )
            assert history.failure.range == ByteRange(at, 512)
            owners = history.findings[-1].answer["owners"]
            assert [owner["paths"] for owner in owners] == [["/hit"]]
            assert owners[0]["file_offset"] == 20 * BLOCK
            daemon.stop()
    assert f'files="{root}/hit"' in daemon.log() or f"files={root}/hit" in daemon.log()
