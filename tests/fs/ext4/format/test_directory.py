"""The fast search of a directory block yields what the decoder of all entries does."""

import random

import pytest

from whoseblock.fs.ext4.format.directory import entries, entries_of


def block(rnd: random.Random, size: int) -> bytearray:
    """Return a directory block with entries of few inodes, some of them deleted."""
    raw = bytearray()
    while len(raw) < size:
        name = bytes(rnd.choices(b"abc\xff", k=rnd.randrange(1, 40)))
        length = -(-(8 + len(name)) // 4) * 4 + 4 * rnd.randrange(3)
        left = size - len(raw)
        length = left if left - length < 12 else length
        name = name[: length - 8]
        raw += rnd.randrange(6).to_bytes(4, "little") + length.to_bytes(2, "little")
        raw += bytes((len(name), rnd.randrange(8))) + name.ljust(length - 8, b"\0")
    return raw


@pytest.mark.parametrize("size", [60, 1024, 4096, 65536])
@pytest.mark.parametrize("has_types", [True, False])
@pytest.mark.parametrize("has_hashes", [True, False])
def test_both_find_the_same(size: int, *, has_types: bool, has_hashes: bool) -> None:
    rnd = random.Random(f"{size} {has_types} {has_hashes}")
    hits = 0
    for _ in range(3 if size == 65536 else 30):
        raw = block(rnd, size)
        if not has_types:
            raw = bytearray(bytes(raw).replace(b"\xff", b"\0"))
        for damage in range(3):
            if damage:
                raw[rnd.randrange(size)] = rnd.randrange(256)
            given = {"has_types": has_types, "has_hashes": has_hashes}
            wanted = set(rnd.sample(range(6), 2))
            every = entries(bytes(raw), **given)
            expected = [one for one in every if isinstance(one, str) or one.inode in wanted]
            found = list(entries_of(bytes(raw), wanted, **given))
            assert found == expected
            hits += len(found)
    assert hits
