"""Days of events in a minute: tens of thousands, and no more memory at the end than in between."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from whoseblock.journal import Filter, open_journal
from whoseblock.watch.attribution import failure_records, finder, retry_queue
from whoseblock.watch.policy.rules import DEFAULT
from whoseblock.watch.processor import Processor, Setup
from whoseblock.watch.statistics import Statistics
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.spool import Spool
from whoseblock.watch.store.state import StateFolder
from whoseblock.watch.worker import BATCH

EVENTS, PLACES = 20_480, 1_000
#: The same again and again, as when a program does not give up.
TIMES = 4


def events() -> Iterator[FailedRange]:
    """Yield events of so many places, each again and again."""
    for number in range(EVENTS):
        place = number // TIMES * 7919 % PLACES
        yield FailedRange(
            source="tracepoint",
            at=1e9 + number,
            device="sdzz",
            start=place * 4096,
            length=4096,
        )


def resident() -> int:
    """Return the memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_what_is_kept_of_failures_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each fails for the first time, and stays open.
    most, batches = 200, 6
    gc.collect()
    of_other_tests = Counter(type(one).__name__ for one in gc.get_objects())
    monkeypatch.setattr(failure_records, "_MAX_CACHED", most)
    monkeypatch.setattr(finder, "_MAX_LOCATED", most)
    monkeypatch.setattr(retry_queue, "_MAX_WAITING", most)
    with (
        StateFolder(tmp_path / "state") as state,
        Processor(Setup(state, DEFAULT, str(tmp_path / "journal.sqlite"), since=2e9)) as processor,
    ):
        for batch in range(batches):
            first = batch * most
            new = [
                FailedRange(
                    source="tracepoint",
                    at=1e9,
                    key=str(number),
                    device="sdzz",
                    start=number * 4096,
                    length=512,
                )
                for number in range(first, first + most)
            ]
            processor.process([new])
        gc.collect()
        kept = Counter(type(one).__name__ for one in gc.get_objects())
        kept.subtract(of_other_tests)
        assert processor.count_unhealed().unhealed == (batches * most, batches * most * 512)
    # A batch may come on top of what was there; each place is kept with and without its record.
    assert 0 < kept["FailureRecord"] <= 3 * most
    assert kept["FailureLocation"] <= 4 * most
    assert kept["FailedRange"] <= 2 * most + 1
    assert kept["Overview"] <= 0
    assert kept["Answer"] <= 0


def test_tens_of_thousands_of_events(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    total = Statistics()
    kept: list[int] = []
    waiting: list[FailedRange] = []
    journal = tmp_path / "journal.sqlite"
    with StateFolder(tmp_path / "state") as state:
        setup = Setup(state, DEFAULT, str(journal), since=2e9)
        with Processor(setup) as processor:
            for number, one in enumerate(events(), 1):
                waiting.append(one)
                if len(waiting) < BATCH and number < EVENTS:
                    continue
                spool.put(waiting)
                waiting = []
                batch = spool.take(BATCH)
                total.add(processor.process(batch.groups))
                spool.drop(batch.files)
                if number % (10 * BATCH) == 0:
                    gc.collect()
                    kept.append(resident())
    assert not spool.has_more
    assert total.reports == {"tracepoint": EVENTS}
    assert total.failures == {"sdzz": PLACES}
    # Half of the events later there are not two megabytes more.
    assert kept[-1] - kept[len(kept) // 2] < 2 << 20, kept
    with open_journal(str(journal), write=False) as opened:
        found = list(opened.failures(Filter()))
    assert len(found) == PLACES
    assert sum(one.reports for one in found) == EVENTS // TIMES
    assert all(one.complete is False for one in found)
