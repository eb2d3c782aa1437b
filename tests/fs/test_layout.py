"""The two decoders of every structure agree, and their checksums are where the constants say."""

import importlib
import os
import pkgutil
from typing import Any

import pytest

from whoseblock.fs.layout import Layout
from whoseblock.fs.xfs import format as formats
from whoseblock.fs.xfs.format import ag, attr, btree, directory, inode, superblock


def _layouts() -> dict[str, Layout[Any]]:
    found: dict[str, Layout[Any]] = {}
    for info in pkgutil.iter_modules(formats.__path__):
        module = importlib.import_module(f"{formats.__name__}.{info.name}")
        found |= {name: value for name, value in vars(module).items() if isinstance(value, Layout)}
    return found


LAYOUTS = _layouts()


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_decoders_agree_on_random_bytes(name: str) -> None:
    import numpy as np

    layout = LAYOUTS[name]
    assert layout.dtype().itemsize == layout.size
    raw = os.urandom(layout.size * 50)
    array = np.frombuffer(raw, layout.dtype())
    for index in range(50):
        record = layout.unpack_from(raw, index * layout.size)
        for field, value in zip(layout.fields, record, strict=True):
            other = array[index][field]
            # NumPy drops the zeros at the end of bytes.
            assert other == (value.rstrip(b"\0") if isinstance(value, bytes) else value)
    flat = layout.unpack_many(raw, 0, 50)
    width = len(layout.fields)
    assert flat[width * 7 : width * 8] == tuple(layout.unpack_from(raw, 7 * layout.size))


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("SUPERBLOCK", superblock.XFS_SB_CRC_OFF),
        ("AGF", ag.XFS_AGF_CRC_OFF),
        ("AGI", ag.XFS_AGI_CRC_OFF),
        ("SHORT_HEADER", btree.XFS_BTREE_SBLOCK_CRC_OFF),
        ("LONG_HEADER", btree.XFS_BTREE_LBLOCK_CRC_OFF),
        ("DINODE", inode.XFS_DINODE_CRC_OFF),
        ("DIR_BLOCK", directory.XFS_DIR3_DATA_CRC_OFF),
        ("DA_BLOCK", attr.XFS_DA3_CRC_OFF),
        ("REMOTE_HEADER", attr.XFS_ATTR3_RMT_CRC_OFF),
    ],
)
def test_the_checksum_is_at_the_offset_of_its_constant(name: str, offset: int) -> None:
    fields = LAYOUTS[name].dtype().fields
    assert fields is not None
    assert fields["crc"][1] == offset


@pytest.mark.parametrize(
    ("flags2", "raw", "expected"),
    [
        (0, 0, 0),
        (0, 0xFFFFFFFF_00000005, -1_000_000_000 + 5),
        (0, 0x7FFFFFFF_00000000, 0x7FFFFFFF * 1_000_000_000),
        (inode.XFS_DIFLAG2_BIGTIME, 0, -(1 << 31) * 1_000_000_000),
        (inode.XFS_DIFLAG2_BIGTIME, (1 << 31) * 1_000_000_000 + 7, 7),
    ],
)
def test_times_of_both_formats(flags2: int, raw: int, expected: int) -> None:
    core = inode.DINODE.unpack_from(bytes(inode.DINODE.size))._replace(flags2=flags2)
    assert core.time_ns(raw) == expected
