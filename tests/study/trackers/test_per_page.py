"""The tracker of owners per page: what it holds after a few faults, and its size."""

import pytest

from whoseblock.study.base import PageOwner
from whoseblock.study.report.arithmetic import per_page_bytes
from whoseblock.study.trackers.per_page import PerPage


@pytest.mark.parametrize(
    ("owners", "weight"), [(1, 0), (2, 96), (3, 136), (4, 176), (8, 336), (64, 2576)]
)
def test_a_page_of_n_owners_takes_16_and_40_n_bytes(owners: int, weight: int) -> None:
    tracker = PerPage()
    for mapping in range(1, owners + 1):
        tracker.associate(307, mapping, 256)
    assert tracker.counts.memory == tracker.recount() == per_page_bytes(owners) == weight
    assert tracker.owners(307) == tuple(PageOwner(one, 256) for one in range(1, owners + 1))
    assert tracker.owners(308) == ()


def test_an_entry_of_2_mib_is_512_pages() -> None:
    tracker = PerPage()
    for mapping in (1, 2):
        tracker.associate(1024, mapping, 512, 512)
    assert tracker.counts.memory == 512 * (16 + 2 * 40)
    assert tracker.counts.allocations == 512 * 3
    assert tracker.owners(1024 + 511) == (PageOwner(1, 1023), PageOwner(2, 1023))


def test_root_and_node_stay_until_the_last_owner_goes() -> None:
    tracker = PerPage()
    for mapping in (1, 2, 3):
        tracker.associate(7, mapping, 0)
    tracker.disassociate(7, 2, 0)
    assert tracker.counts.memory == 96
    tracker.disassociate(7, 1, 0)
    assert tracker.counts.memory == tracker.recount() == 56
    assert tracker.owners(7) == (PageOwner(3, 0),)
    tracker.disassociate(7, 3, 0)
    assert tracker.counts.memory == tracker.recount() == 0
    assert tracker.counts.peak == 136
    assert tracker.counts.allocations == tracker.counts.frees == 4


def test_an_owner_is_stored_once() -> None:
    tracker = PerPage()
    tracker.associate(7, 1, 0)
    tracker.associate(7, 1, 0)
    assert tracker.counts.memory == tracker.recount() == 0
    for _ in range(2):
        tracker.associate(7, 2, 0)
    assert tracker.counts.memory == tracker.recount() == 96
    assert tracker.owners(7) == (PageOwner(1, 0), PageOwner(2, 0))


def test_removing_an_unknown_owner_changes_nothing() -> None:
    tracker = PerPage()
    tracker.disassociate(7, 1, 0)
    tracker.associate(7, 1, 0)
    tracker.disassociate(7, 2, 0)
    assert tracker.owners(7) == (PageOwner(1, 0),)
