"""Emulated persistent memory and failing disks, compared with a model of every sector."""

import contextlib
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.media.test_device import SECTOR, SECTORS, expected_ranges

from whoseblock.errors import MediaError, OutOfDeviceError
from whoseblock.media import EmulatedPmem, FileMedia, OverlayMedia
from whoseblock.media.control import format_control, parse_control
from whoseblock.media.sectors import Change, Mark
from whoseblock.ranges import ByteRange, merge

MARKS = st.sampled_from(["good", "bad", "permanent"])
SIZE = 12 * 4096

# Often on edges of sectors, where the rules differ.
offsets = st.one_of(
    st.integers(0, SIZE - 1),
    st.integers(0, SIZE // 512 - 1).map(lambda sector: sector * 512),
    st.integers(0, SIZE // 4096 - 1).map(lambda page: page * 4096),
)
lengths = st.one_of(st.integers(1, 9000), st.sampled_from([512, 1024, 4096, 8192]))


class SectorMachine(RuleBasedStateMachine):
    """An emulated medium against a mark for every sector and bytes in an array."""

    @initialize(sector=st.sampled_from([512, 4096]), in_place=st.booleans())
    def begin(self, sector: int, in_place: bool) -> None:  # noqa: FBT001 - hypothesis's
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        self.path = Path(name)
        self.original = os.urandom(SIZE)
        # Bytes after the last whole sector are none of the device's.
        self.path.write_bytes(self.original + b"tail")
        self.bytes = bytearray(self.original)
        file = FileMedia(self.path, writable=in_place)
        self.in_place = in_place
        self.medium = EmulatedPmem(file if in_place else OverlayMedia(file), sector=sector)
        self.sector = sector
        self.marks: list[Mark] = ["good"] * (SIZE // sector)

    def teardown(self) -> None:
        if hasattr(self, "medium"):
            self.medium.close()
            self.path.unlink()

    def touched(self, start: int, length: int) -> range:
        return range(start // self.sector, -(-(start + length) // self.sector))

    def bytes_of(self, wanted: list[bool], start: int, length: int) -> list[ByteRange]:
        """Return the requested bytes of those sectors, one by one: slow and simple."""
        found = (at for at in range(start, start + length) if wanted[at // self.sector])
        return merge(ByteRange(at, 1) for at in found)

    @rule(mark=MARKS, start=offsets, length=lengths)
    def mark_one(self, mark: Mark, start: int, length: int) -> None:
        length = min(length, SIZE - start)
        self.medium.change([Change(mark, ByteRange(start, length))])
        for sector in self.touched(start, length):
            if mark != "bad" or self.marks[sector] != "permanent":
                self.marks[sector] = mark

    @rule(marks=st.lists(st.tuples(MARKS, offsets), max_size=4), beyond=st.integers(0, 5000))
    def mark_nothing_if_one_is_wrong(self, marks: list[tuple[Mark, int]], beyond: int) -> None:
        changes = [Change(mark, ByteRange(start, 1)) for mark, start in marks]
        wrong = Change("bad", ByteRange(SIZE - 1, 2 + beyond))
        with pytest.raises(OutOfDeviceError):
            self.medium.change([*changes, wrong])

    @rule(start=offsets, length=lengths)
    def read(self, start: int, length: int) -> None:
        length = min(length, SIZE - start)
        lost = self.bytes_of([mark != "good" for mark in self.marks], start, length)
        if lost:
            with pytest.raises(MediaError) as error:
                self.medium.pread(start, length)
            assert list(error.value.ranges) == lost
        else:
            assert self.medium.pread(start, length) == self.bytes[start : start + length]

    @rule(start=offsets, length=lengths, seed=st.integers(0, 255))
    def write(self, start: int, length: int, seed: int) -> None:
        length = min(length, SIZE - start)
        data = random.Random(seed).randbytes(length)
        whole = [
            start <= number * self.sector and (number + 1) * self.sector <= start + length
            for number in range(len(self.marks))
        ]
        refusing = [
            mark == "permanent" or (mark == "bad" and not covered)
            for mark, covered in zip(self.marks, whole, strict=True)
        ]
        if refused := self.bytes_of(refusing, start, length):
            with pytest.raises(MediaError) as error:
                self.medium.pwrite(start, data)
            assert list(error.value.ranges) == refused
            return
        self.medium.pwrite(start, data)
        self.bytes[start : start + length] = data
        for number, covered in enumerate(whole):
            if covered:
                self.marks[number] = "good"

    @invariant()
    def lists_agree(self) -> None:
        if not hasattr(self, "medium"):
            return
        sectors: dict[Mark, list[ByteRange]] = {"good": [], "bad": [], "permanent": []}
        for number, mark in enumerate(self.marks):
            sectors[mark].append(ByteRange(number * self.sector, self.sector))
        assert self.medium.lists() == (merge(sectors["bad"]), merge(sectors["permanent"]))
        failing = merge([*sectors["bad"], *sectors["permanent"]])
        rows = [tuple(map(int, row.split())) for row in self.medium.badblocks.splitlines()]
        assert rows == [(bad.start // 512, bad.length // 512) for bad in failing]

    @invariant()
    def a_listing_can_be_written_back(self) -> None:
        if hasattr(self, "medium"):
            text = format_control(*self.medium.lists())
            again = EmulatedPmem(FileMedia(self.path), sector=self.sector)
            again.change(parse_control(text, SIZE))
            assert again.lists() == self.medium.lists()
            again.close()

    @invariant()
    def the_image_is_as_it_should_be(self) -> None:
        if hasattr(self, "medium"):
            expected = self.bytes if self.in_place else self.original
            assert self.path.read_bytes() == expected + b"tail"


TestMarkedSectors = SectorMachine.TestCase
TestMarkedSectors.settings = settings(max_examples=60, stateful_step_count=25)


def test_threads_see_whole_writes_and_consistent_lists(tmp_path: Path) -> None:
    # Each writes its letter over a range that others poison: what is good holds one letter.
    image = tmp_path / "image"
    image.write_bytes(b"A" * SIZE)
    medium = EmulatedPmem(OverlayMedia(FileMedia(image)))
    where = ByteRange(4096, 4096)
    edges = [ByteRange(4096, 512), ByteRange(7680, 512)]
    stop = threading.Event()

    def until_stopped(act: Callable[[], None]) -> None:
        while not stop.is_set():
            act()

    def seen() -> Iterator[set[int]]:
        for _ in range(3000):
            assert medium.poison in ([], edges)
            with contextlib.suppress(MediaError):
                yield set(medium.pread(*where))

    acts = [
        lambda: medium.pwrite(where.start, b"A" * where.length),
        lambda: medium.pwrite(where.start, b"B" * where.length),
        lambda: medium.change(Change("bad", edge) for edge in edges),
    ]
    with ThreadPoolExecutor() as threads:
        others = [threads.submit(until_stopped, act) for act in acts]
        readers = [threads.submit(lambda: list(seen())) for _ in range(2)]
        wait(readers)
        stop.set()
    letters = [letters for reader in readers for letters in reader.result()]
    assert all(other.exception() is None for other in others)
    assert letters
    assert all(len(one) == 1 for one in letters)
    medium.close()


class PoisonMachine(RuleBasedStateMachine):
    """Emulated persistent memory against sectors in a set and bytes in an array."""

    @initialize()
    def begin(self) -> None:
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        self.path = Path(name)
        self.bytes = bytearray(os.urandom(SECTORS * SECTOR))
        self.path.write_bytes(self.bytes)
        self.pmem = EmulatedPmem(FileMedia(self.path, writable=True))
        self.bad: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "pmem"):
            self.pmem.close()
            self.path.unlink()

    @rule(start=st.integers(0, SECTORS * SECTOR - 1), length=st.integers(1, 1500))
    def poison(self, start: int, length: int) -> None:
        length = min(length, SECTORS * SECTOR - start)
        self.pmem.inject(ByteRange(start, length))
        self.bad.update(range(start // SECTOR, -(-(start + length) // SECTOR)))

    @rule(start=st.integers(0, SECTORS * SECTOR - 1), length=st.integers(1, 3000))
    def read(self, start: int, length: int) -> None:
        length = min(length, SECTORS * SECTOR - start)
        lost = expected_ranges(self.bad, start, length)
        if lost:
            with pytest.raises(MediaError) as error:
                self.pmem.pread(start, length)
            assert list(error.value.ranges) == lost
        else:
            assert self.pmem.pread(start, length) == self.bytes[start : start + length]

    @rule(
        start=st.one_of(
            st.integers(0, SECTORS * SECTOR - 1),
            st.integers(0, SECTORS - 1).map(lambda sector: sector * SECTOR),
        ),
        length=st.one_of(st.integers(1, 2000), st.just(SECTOR), st.just(4 * SECTOR)),
    )
    def write(self, start: int, length: int) -> None:
        length = min(length, SECTORS * SECTOR - start)
        data = os.urandom(length)
        whole = set(range(-(-start // SECTOR), (start + length) // SECTOR))
        touched = set(range(start // SECTOR, -(-(start + length) // SECTOR)))
        if (touched - whole) & self.bad:
            with pytest.raises(MediaError):
                self.pmem.pwrite(start, data)
        else:
            self.pmem.pwrite(start, data)
            self.bytes[start : start + length] = data
            self.bad -= whole

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "pmem"):
            return
        assert self.path.read_bytes() == self.bytes
        shown = {
            sector + number
            for sector, count in (map(int, row.split()) for row in self.pmem.badblocks.splitlines())
            for number in range(count)
        }
        assert shown == self.bad


TestPoison = PoisonMachine.TestCase
TestPoison.settings = settings(max_examples=60, stateful_step_count=30)
