"""The header of a device whose opened volume the kernel maps."""

from contextlib import closing
from pathlib import Path

import pytest
from tests.support.tools import run
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.media.device import FileMedia
from whoseblock.stack.base import Layer, LinearSegment, descend
from whoseblock.stack.images.encrypted import add_header

QUICK = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--disable-locks", "--batch-mode")


@pytest.mark.parametrize(("version", "payload"), [(1, 2 * MIB), (2, 16 * MIB)])
def test_the_header_of_an_open_device_is_named(tmp_path: Path, version: int, payload: int) -> None:
    path = sparse_file(tmp_path / "disk", 32 * MIB)
    run(["cryptsetup", "luksFormat", *QUICK, f"--type=luks{version}", path, "-"], b"secret")
    with closing(FileMedia(path)) as media:
        for start, named in ((payload, True), (payload + MIB, False)):
            disk = Layer("disk", media.size, "disk", gap="used by none", gap_certain=False)
            volume = Layer("clear", media.size - start, "encrypted volume")
            disk.segments = [LinearSegment(start, volume.size, volume)]
            add_header(disk, media)
            (found,) = descend(disk, 8192, 512)
            assert (found.what == f"LUKS{version} header and keys") == found.certain == named
            (found,) = descend(disk, start, 512)
            assert (found.layer, found.offset) == (volume, 0)
