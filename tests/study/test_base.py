"""The key of an owner."""

from whoseblock.study.base import PageOwner, key_of, owner_of


def test_a_key_holds_mapping_and_index() -> None:
    assert owner_of(key_of(1 << 40, (1 << 51) - 1)) == PageOwner(1 << 40, (1 << 51) - 1)
