"""The design without a tracker: only the number of entries of each page is kept."""

from whoseblock.study.base import LookupResult
from whoseblock.study.trackers.on_demand import OnDemand


def test_the_entries_of_a_page_are_counted() -> None:
    tracker = OnDemand(lambda _: LookupResult("unknown", []))
    tracker.associate(7, 1, 0, 2)
    tracker.associate(8, 2, 5)
    assert tracker.share == {7: 1, 8: 2}
    tracker.disassociate(8, 1, 1)
    assert tracker.share == {7: 1, 8: 1}
    tracker.disassociate(7, 1, 0)
    assert tracker.share == {8: 1}
