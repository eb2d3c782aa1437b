"""Names of disks over time: in a made-up /sys, and of a loop device of this machine."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.mounts import loop_device
from tests.support.tools import need_root
from tests.support.watch_daemon import until

from whoseblock.stack.kernel.host import Host
from whoseblock.watch.clock import Clock
from whoseblock.watch.sources import disk_numbers
from whoseblock.watch.sources.disk_numbers import DiskNumbers, adopt_socket
from whoseblock.watch.sources.history import mark_history
from whoseblock.watch.store.reports import FailedRange, Report


class Disks:
    """A machine whose disks change at moments of a clock."""

    def __init__(self, root: Path, announcements: socket.socket | None = None) -> None:
        self.root = root
        self.now = 0.0
        (root / "sys/class/block").mkdir(parents=True)
        self.set("sda", 7)
        self.numbers = DiskNumbers(Host(root), lambda: self.now, announcements)

    def set(self, name: str, number: int) -> None:
        """Assign a name to a disk; 0 removes it, as from a loop device without a file."""
        folder = self.root / "sys/block" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diskseq").write_text(f"{number or 999}\n")
        (folder / "size").write_text("8\n" if number else "0\n")
        link = self.root / "sys/class/block" / name
        if not link.exists():
            link.symlink_to(folder)

    def change(self, at: float, name: str, number: int) -> None:
        self.now = at
        self.numbers.refresh()
        self.set(name, number)
        self.now = at + 1
        self.numbers.refresh()

    def mark(self, at: float, device: str = "sda", since: float = 0.0) -> tuple[str, int, str]:
        """Return how a failure at a moment is marked: its device, its disk, and why it is past."""
        report = FailedRange(
            source="kmsg", at=Clock.now().offset + at, key="k", device=device, start=0, length=512
        )
        (one,) = mark_history([report], self.numbers, since)
        assert isinstance(one, FailedRange)
        return one.device, one.disk, one.past.partition(", ")[2]


def test_a_failure_from_before_the_daemon_watched(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    assert disks.mark(100) == ("sda", 7, "")
    assert disks.mark(100, since=200) == ("sda", 7, "before the daemon watched")
    assert disks.mark(100, "nothing", since=200) == ("nothing", 0, "before the daemon watched")


def test_a_failure_of_a_disk_that_lost_its_name(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    disks.change(100, "sda", 8)
    former = "on another disk than the one that is called sda now"
    assert disks.mark(50) == ("sda#7", 0, former)
    assert disks.mark(100.5) == ("sda", 8, "about when another disk got this name")
    assert disks.mark(150) == ("sda", 8, "")
    # A loop device without a file has a name, and is no disk.
    disks.change(200, "sda", 0)
    assert disks.mark(210) == ("sda#8", 0, former)
    disks.change(300, "sda", 9)
    # No other disk had the name then, so it is that of the new one.
    assert disks.mark(300.5) == ("sda", 9, "")
    assert disks.mark(199) == ("sda#8", 0, former)


def test_the_time_of_day_was_set_back(tmp_path: Path) -> None:
    # Reports and the present have the same offset; that of the start is not used.
    disks = Disks(tmp_path)
    assert disks.mark(100, since=99) == ("sda", 7, "")


def test_other_reports_stay_as_they_are(tmp_path: Path) -> None:
    from whoseblock.watch.store.reports import EventsLost

    lost: Report = EventsLost(source="kmsg", at=1.0, count=1, what="gone")
    assert mark_history([lost], Disks(tmp_path).numbers, 2e9) == [lost]


DISK = b"add@/devices/virtual/block/sda\0ACTION=add\0SUBSYSTEM=block\0"
OTHER = b"add@/devices/virtual/net/lo\0ACTION=add\0SUBSYSTEM=net\0"


@pytest.fixture
def announced(tmp_path: Path) -> Iterator[tuple[Disks, socket.socket]]:
    """Provide disks, and a socket that announces their changes and announced one before."""
    to, passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    passed.settimeout(0)
    with to, passed:
        to.send(DISK)
        yield Disks(tmp_path, passed), to


def test_announcements_from_before_the_start(announced: tuple[Disks, socket.socket]) -> None:
    # As systemd queues them while the daemon starts or is started again.
    disks, to = announced
    before = disks.numbers.tenure("sda")
    disks.now = 10
    disks.numbers.read()
    assert disks.numbers.tenure("sda") == before
    assert disks.mark(5) == ("sda", 7, "")
    disks.now = 20
    disks.set("sda", 8)
    to.send(DISK)
    disks.numbers.read()
    assert disks.mark(5) == ("sda#7", 0, "on another disk than the one that is called sda now")
    assert disks.mark(15) == ("sda", 8, "about when another disk got this name")
    assert disks.mark(21) == ("sda", 8, "")


def test_a_change_behind_many_other_announcements(
    announced: tuple[Disks, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_numbers, "_MOST", 4)
    disks, to = announced
    disks.numbers.read()
    disks.now = 10
    disks.set("sda", 8)
    for event in (OTHER, OTHER, OTHER, OTHER, DISK):
        to.send(event)
    disks.now = 20
    # What is read says nothing of a disk: that nothing has changed is not known yet.
    disks.numbers.read()
    disks.numbers.read()
    assert disks.mark(15) == ("sda", 8, "about when another disk got this name")


def test_which_passed_descriptors_are_taken() -> None:
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as right,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as of_no_group,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        Path("/dev/null").open("rb") as no_socket,
    ):
        right.bind((0, 1))
        opened = (no_socket, other, of_no_group, right, right)
        numbers = [os.dup(one.fileno()) for one in opened]
        adopted = adopt_socket(numbers)
        assert adopted is not None
        with adopted:
            assert adopted.fileno() == numbers[3]
            assert not adopted.getblocking()
        for number in numbers:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)
        assert adopt_socket([]) is None


def test_the_kernel_announces_a_loop_device(tmp_path: Path) -> None:
    need_root()
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    numbers = DiskNumbers(Host())
    try:
        with loop_device(image) as device:
            name = Path(device).name
            tenure = until(lambda: numbers.tenure(name))
            assert tenure.number == Host().read_disk_number(name) != 0
            assert tenure.earliest <= tenure.latest
    finally:
        numbers.close()
