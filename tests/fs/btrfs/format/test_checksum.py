"""The checksums: published values, and blocks that mkfs.btrfs wrote (test_filesystem)."""

import pytest

from whoseblock.fs.btrfs.format.checksum import checksum_matches, xxhash64


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
    ],
)
def test_xxhash64_has_the_published_values(data: bytes, value: int) -> None:
    assert xxhash64(data) == value


@pytest.mark.parametrize("kind", range(4))
def test_a_flipped_bit_does_not_match(kind: int) -> None:
    assert not checksum_matches(kind, bytes(4096))
