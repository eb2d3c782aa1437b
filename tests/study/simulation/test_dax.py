"""The emulated dax device: page frames, holders and page tables."""

import pytest

from whoseblock.errors import OutOfDeviceError
from whoseblock.study.base import key_of
from whoseblock.study.measurements.sources import MadeUpSource
from whoseblock.study.simulation.dax import DaxDevice, Pagemap, Processes


def test_a_device_without_a_holder_reports_unknown() -> None:
    with MadeUpSource(10, 2, seed=1) as source:
        media = source.media()
        outcome = Pagemap(0x100, DaxDevice(media)).memory_failure(0x101)
        assert (outcome.kind, outcome.cleared) == ("unknown", False)
        media.close()


def test_page_frames_of_other_memory_are_refused() -> None:
    with MadeUpSource(10, 2, seed=1) as source:
        media = source.media()
        pagemap = Pagemap(0x100, DaxDevice(media))
        for pfn in (0xFF, 0x100 + source.extents.pages):
            with pytest.raises(OutOfDeviceError, match=f"{pfn:#x}"):
                pagemap.memory_failure(pfn)
        media.close()


def test_page_tables_hold_the_pages_that_a_process_touched() -> None:
    processes = Processes()
    for process, mapping in ((10, 1), (11, 1), (12, 2)):
        processes.map(process, mapping)
    for process in (10, 11):
        processes.touch(process, key_of(1, 5), 2)
    assert processes.with_page(key_of(1, 6)) == [10, 11]
    assert processes.with_page(key_of(1, 7)) == processes.with_page(key_of(2, 5)) == []
    # When the entry goes, it goes from all page tables.
    processes.disassociate(300, 1, 6)
    assert processes.with_page(key_of(1, 6)) == []
    processes.unmap(10, 1)
    assert processes.with_page(key_of(1, 5)) == [11]
    assert processes.mapped(1)
    processes.unmap(11, 1)
    assert not processes.mapped(1)
    assert not processes.mapped(3)
