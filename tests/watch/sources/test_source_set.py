"""The sources, each on what stands in for the kernel where this machine has no more.

Bad-blocks lists are a folder, the log is a socket that keeps records apart as /dev/kmsg does.  What
this kernel really has is in `alone/test_watch_kernel`.
"""

import errno
import itertools
import os
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.tools import need_root, run
from tests.support.watch_daemon import until

from whoseblock.errors import UnsupportedError
from whoseblock.ranges import ByteRange
from whoseblock.sources.base import Failure
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.clock import boot_id
from whoseblock.watch.sources.badblock_lists import BadBlockListSource
from whoseblock.watch.sources.base import Source
from whoseblock.watch.sources.kmsg import KmsgSource
from whoseblock.watch.sources.source_set import SourceSet
from whoseblock.watch.sources.tracepoints import TraceSource
from whoseblock.watch.store.reports import (
    BadBlockList,
    EventsLost,
    FailedRange,
    FilesystemError,
    Report,
)
from whoseblock.watch.store.state import LogPosition, StateFolder

PAGE = os.sysconf("SC_PAGE_SIZE")

# ------------------------------------------------------------------ the kernel's log


class Log:
    """A log that a test writes, and the source that reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int = -1, skew: float = 0.0) -> None:
        end, self._write = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = end.detach()
        os.set_blocking(descriptor, False)
        self.gaps = 0
        read = os.read

        def fake_read(wanted: int, size: int) -> bytes:
            if wanted == descriptor and self.gaps:
                self.gaps -= 1
                raise BrokenPipeError(errno.EPIPE, "overwritten")
            return read(wanted, size)

        monkeypatch.setattr(os, "read", fake_read)
        #: Since when the tracepoints have all failures, None if they have not.
        self.traced: float | None = None
        position = LogPosition("boot", after, skew)
        self.source = KmsgSource(descriptor, position, 4096, self._is_traced)

    def _is_traced(self, since: float) -> bool:
        return self.traced is not None and since >= self.traced

    def close(self) -> None:
        self.source.close()
        self._write.close()

    def send(self, sequence: int, text: str, priority: int = 3, at: float = 1.0) -> None:
        self._write.send(f"{priority},{sequence},{int(at * 1e6)},-;{text}\n".encode())

    def read(self) -> list[Report]:
        return list(self.source.read())


def words(reports: list[Report]) -> list[object]:
    return [
        (one.device, one.start, one.length, one.key)
        if isinstance(one, FailedRange)
        else (one.count, one.key)
        if isinstance(one, EventsLost)
        else one
        for one in reports
    ]


def test_messages_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Log(monkeypatch)) as log:
        log.send(1, "XFS (sda1): Mounting V5 Filesystem")
        log.send(2, "critical medium error, dev sda, sector 2456 op 0x0:(READ) flags 0x0")
        log.send(3, "Memory failure: 0x10140a: recovery action for dax page: Recovered")
        log.send(4, "I/O error, dev sdb, sector 8", priority=12)
        assert words(log.read()) == [
            ("sda", 2456 * 512, 512, "boot:2"),
            ("physical-memory", 0x10140A * 4096, 4096, "boot:3"),
        ]
        assert log.read() == []
        assert log.source.sequence == 4


def test_messages_about_signals_are_attached_to_the_failed_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = "Sending SIGBUS to x:9 due to hardware memory corruption"
    with closing(Log(monkeypatch)) as log:
        # Of a huge page with DAX these have the number of the first page.
        log.send(1, f"Memory failure: 0x100e00: {killed}")
        log.send(2, "Memory failure: 0x100e0d: recovery action for dax page: Recovered")
        log.send(3, f"Memory failure: 0x900000: {killed}")
        log.send(4, "Memory failure: 0x100e0e: recovery action for dax page: Recovered")
        reports = log.read()
    assert words(reports) == [
        ("physical-memory", 0x100E0D * 4096, 4096, "boot:2"),
        ("physical-memory", 0x100E0E * 4096, 4096, "boot:4"),
    ]
    signals = [one.detail.get("signals") for one in reports]
    assert signals == [[f"Memory failure: 0x100e00: {killed}"], None]


def test_log_text_that_a_user_controls_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Programs with such names crash: these are the messages of a real kernel.
    crash = "segfault at 0 ip 0000562863bbc132 sp 00007ffe1817fa60 error 6 in"
    with closing(Log(monkeypatch)) as log:
        log.send(1, f"Memory failure:[31303]: {crash} Memory failure: 0x10140a[1132,562863bbc+10]")
        log.send(2, f"x[9]: {crash} critical medium error, dev sda, sector 2456 op 0x0:(READ)[1+1]")
        log.send(3, f"x[9]: {crash} a\\x0aMemory failure: 0x10140a: recovery[1132,562863bbc+10]")
        log.send(4, f"x[9]: {crash} blk_print_req_error: 117 callbacks suppressed[1132,5628+10]")
        log.send(5, "[1.0] I/O error, dev sda, sector 8")
        # The names of these fill the 15 bytes that a name has.
        log.send(6, f"I/O error, dev [9]: {crash} x[1132,562863bbc+10]")
        log.send(7, f"Memory failure:[9]: {crash} x[1132,562863bbc+10]")
        log.send(8, f"print_req_error[9]: {crash} x[1132,562863bbc+10]")
        assert log.read() == []
        assert log.source.sequence == 8


def test_messages_that_were_overwritten_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Log(monkeypatch, after=10)) as log:
        log.send(10, "I/O error, dev sda, sector 8")
        log.send(11, "I/O error, dev sda, sector 16")
        log.gaps = 1
        log.send(20, "I/O error, dev sda, sector 24")
        assert words(log.read()) == [
            ("sda", 16 * 512, 512, "boot:11"),
            (8, "boot:20:lost"),
            ("sda", 24 * 512, 512, "boot:20"),
        ]


def test_messages_missed_while_not_listening_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Log(monkeypatch, after=10)) as log:
        log.send(100, "something else")
        assert words(log.read()) == [(89, "boot:100:lost")]


def test_suppressed_messages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Log(monkeypatch)) as log:
        log.send(1, "blk_print_req_error: 117 callbacks suppressed")
        log.send(2, "I/O error, dev sda, sector what")
        assert words(log.read()) == [(117, "boot:1"), (1, "boot:2")]


def test_unread_messages_are_no_loss_where_the_tracepoints_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error, suppressed = (
        "I/O error, dev sda, sector 8",
        "blk_print_req_error: 5 callbacks suppressed",
    )
    with closing(Log(monkeypatch)) as log:
        log.traced = time.time() - 5
        now = time.monotonic()
        log.send(1, error, at=now - 60)
        assert words(log.read()) == [("sda", 4096, 512, "boot:1")]
        # When these were logged is known; those before them may be older than the tracepoints.
        log.send(9, "something else", at=now)
        log.send(10, suppressed, at=now)
        assert words(log.read()) == [(7, "boot:9:lost"), (5, "boot:10")]
        log.send(20, error, at=now)
        log.send(21, suppressed, at=now)
        assert words(log.read()) == [("sda", 4096, 512, "boot:20")]
        assert log.source.health == "read up to message 21; 14 were not read, but traced"
        log.traced = None
        log.send(30, suppressed, at=now)
        assert words(log.read()) == [(8, "boot:30:lost"), (5, "boot:30")]


def test_the_clock_of_the_log_is_not_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was 16 seconds behind after a night on a real machine.
    said, text = time.monotonic() - 16, "I/O error, dev sda, sector 8"
    with closing(Log(monkeypatch)) as log:
        # Messages from before the daemon listened have no known time.
        log.send(1, text, at=said)
        (early,) = log.read()
        assert time.time() - early.at == pytest.approx(16, abs=5)
        log.send(2, text, at=said)
        log.send(3, text, at=said)
        for report in log.read():
            assert time.time() - report.at == pytest.approx(0, abs=5)
        skew = log.source.skew
        assert skew == pytest.approx(16, abs=5)
    # The next daemon knows it, too, for what was said between the two.
    with closing(Log(monkeypatch, skew=skew)) as log:
        log.send(4, text, at=said)
        (report,) = log.read()
        assert time.time() - report.at == pytest.approx(0, abs=5)


def test_a_log_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    lines = [
        f"3,{number},100,-;I/O error, dev sda, sector {number}\n DEVICE=b7:0\n" for number in (5, 6)
    ]
    (tmp_path / "dev/kmsg").write_text(lines[0])
    with closing(KmsgSource.at(tmp_path / "dev/kmsg", LogPosition("boot"), 4096)) as source:
        assert source.fileno() == -1
        assert [one.key for one in source.sweep()] == ["boot:5"]
        (tmp_path / "dev/kmsg").write_text("".join(lines))
        assert [one.key for one in source.sweep()] == ["boot:6"]


def test_a_full_disk_does_not_end_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text("3,5,100,-;I/O error, dev sda, sector 8\n")
    with StateFolder(tmp_path / "state") as state:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with closing(SourceSet(Host(tmp_path), state, ("kmsg",))) as sources:
            (kmsg,) = sources.open_missing()
            (report,) = kmsg.read()
            assert isinstance(report, FailedRange)
            # It is not in the spool yet.
            sources.save_position()
            assert state.load("position.json", LogPosition) is None
            with monkeypatch.context() as patch:
                patch.setattr(state, "save", full)
                sources.mark_spooled(kmsg, 1)
            assert "event=position-not-kept" in capfd.readouterr().err
            sources.mark_spooled(kmsg, 0)
            assert state.load("position.json", LogPosition) is None
            sources.mark_spooled(kmsg, 1)
            position = state.load("position.json", LogPosition)
            assert position is not None
            assert (position.boot, position.sequence) == (boot_id(), 5)


# ------------------------------------------------------------------ lists of bad blocks


@pytest.fixture
def sys_block(tmp_path: Path) -> Path:
    folder = tmp_path / "sys/block/pmem0"
    folder.mkdir(parents=True)
    return folder


def swept(source: BadBlockListSource) -> list[object]:
    return [
        (one.device, one.ranges) if isinstance(one, BadBlockList) else one for one in source.sweep()
    ]


def test_a_list_is_reported_when_it_changes(tmp_path: Path, sys_block: Path) -> None:
    bad = sys_block / "badblocks"
    bad.write_text("\n")
    region = tmp_path / "sys/bus/nd/devices/region0"
    region.mkdir(parents=True)
    (region / "badblocks").write_text("100 1\n")
    known = {"region0": (ByteRange(51200, 512),)}
    with closing(BadBlockListSource(Host(tmp_path), known)) as source:
        assert swept(source) == []
        bad.write_text("8 8\n16 8\n4096 1\n")
        both = (ByteRange(4096, 8192), ByteRange(2097152, 512))
        assert swept(source) == [("pmem0", both)]
        assert swept(source) == []
        bad.write_text("\n")
        assert swept(source) == [("pmem0", ())]
        assert source.health == "2 lists, 0 with change notification"


def test_a_list_that_reappears_may_belong_to_another_device(
    tmp_path: Path, sys_block: Path
) -> None:
    bad = sys_block / "badblocks"
    bad.write_text("8 8\n")
    told = ("pmem0", (ByteRange(4096, 4096),))
    with closing(BadBlockListSource(Host(tmp_path), {})) as source:
        assert swept(source) == [told]
        bad.unlink()
        assert swept(source) == []
        bad.write_text("8 8\n")
        # Whose it is is known to who looks at the identity.
        assert swept(source) == [told]
        assert swept(source) == []


def test_a_file_that_is_no_list_is_reported(tmp_path: Path, sys_block: Path) -> None:
    (sys_block / "badblocks").write_text("eight\n")
    with closing(BadBlockListSource(Host(tmp_path), {})) as source:
        (ill,) = source.sweep()
        # Once.
        assert list(source.sweep()) == []
    assert isinstance(ill, FilesystemError)
    assert (ill.place, "expected SECTOR COUNT" in ill.what) == ("pmem0", True)


def test_a_list_that_is_longer_than_a_page(tmp_path: Path, sys_block: Path) -> None:
    # The state of ranges behind the end of the page is unknown.

    def shown(entries: range) -> str:
        return "".join(f"{10_000_000 + at * 16} 8\n" for at in entries)[:4095]

    def ranges(entries: range) -> tuple[ByteRange, ...]:
        return tuple(ByteRange((10_000_000 + at * 16) * 512, 4096) for at in entries)

    bad = sys_block / "badblocks"
    bad.write_text(shown(range(512)))
    with closing(BadBlockListSource(Host(tmp_path), {"pmem0": ranges(range(300, 512))})) as source:
        ill, listed = source.sweep()
        assert isinstance(ill, FilesystemError)
        assert "is longer than the page" in ill.what
        assert isinstance(listed, BadBlockList)
        assert listed.ranges == ranges(range(512))
        # The first were healed, and the page shows more of the others.
        bad.write_text(shown(range(100, 512)))
        assert swept(source) == [("pmem0", ranges(range(100, 512)))]
        bad.write_text(shown(range(400, 405)))
        assert swept(source) == [("pmem0", ranges(range(400, 405)))]


def test_a_list_is_read_when_the_kernel_notifies_a_change(
    tmp_path: Path, sys_block: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel tells of mounts as it does of bad blocks of pmem, with POLLPRI.
    need_root()
    (sys_block / "badblocks").symlink_to("/proc/self/mountinfo")
    reads = itertools.count(1)

    def parse(text: str, _page_size: int, device: str, name: str) -> tuple[list[Failure], bool]:
        """Return another list each time that the mounts are read."""
        assert text
        return [Failure(next(reads) * 512, 512, device, name)], False

    monkeypatch.setattr("whoseblock.watch.sources.badblock_lists.parse_bad_block_list", parse)
    host = Host(tmp_path)
    host.live = True
    with closing(BadBlockListSource(host, {})) as source:
        assert swept(source) == [("pmem0", (ByteRange(512, 512),))]
        assert source.health == "1 list, 1 with change notification"
        assert list(source.read()) == []
        (tmp_path / "at").mkdir()
        run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "at"])
        try:
            (listed,) = until(lambda: list(source.read()))
            assert isinstance(listed, BadBlockList)
            assert (listed.device, listed.ranges) == ("pmem0", (ByteRange(1024, 512),))
            assert list(source.read()) == []
        finally:
            run(["umount", tmp_path / "at"])
        # The disk has gone.
        (sys_block / "badblocks").unlink()
        assert swept(source) == []
        assert source.health == "0 lists, 0 with change notification"


# ------------------------------------------------------------------ tracepoints, without a kernel


@pytest.fixture
def tracefs(tmp_path: Path) -> Path:
    """Provide a folder like tracefs, with an instance that a killed daemon left."""
    folder = tmp_path / "tracing/instances/test"
    event = folder / "events/memory_failure/memory_failure_event"
    event.mkdir(parents=True)
    (event / "enable").write_text("0\n")
    os.mkfifo(folder / "trace_pipe")
    return tmp_path / "tracing"


def trace_source(tracefs: Path, boot: str = "boot") -> TraceSource:
    consumed = tracefs.parent / "consumed"
    return TraceSource(tracefs, Host("/"), "test", consumed=consumed, boot=boot)


def test_memory_failures_where_an_older_kernel_has_them(tracefs: Path) -> None:
    # The real event is in the virtual machine: this kernel is built without it.
    source = trace_source(tracefs)
    folder = tracefs / "instances/test"
    assert (folder / "events/memory_failure/memory_failure_event/enable").read_text() == "1"
    assert (folder / "trace_clock").read_text() == "mono"
    with (folder / "trace_pipe").open("wb", 0) as pipe:
        head = b"  python3-742     [001] .....   152.318012: memory_failure_event: "
        pipe.write(head + b"pfn 0x10140a: recovery action for dax page: Reco")
        assert list(source.read()) == []
        pipe.write(b"vered\nCPU:0 [LOST 3 EVENTS]\n" + b"x" * 10000)
        failed, lost = source.read()
    source.close()
    assert isinstance(failed, FailedRange)
    assert (failed.device, failed.start) == ("physical-memory", 0x10140A * PAGE)
    assert failed.detail["verdict"] == "Recovered"
    assert isinstance(lost, EventsLost)
    assert lost.count == 3


def test_the_next_daemon_reports_what_a_killed_one_had_read(tracefs: Path) -> None:
    folder = tracefs / "instances/test"
    head = b"  python3-742     [001] .....   152.318%03d: memory_failure_event: pfn 0x%d: recovery"
    line = head + b" action for dax page: Recovered\n"
    (folder / "per_cpu/cpu0").mkdir(parents=True)
    stats = folder / "per_cpu/cpu0/stats"
    stats.write_text("entries: 0\noverrun: 0\nread events: 0\n")
    # Never closed, as when it is killed.
    first = trace_source(tracefs)
    with (folder / "trace_pipe").open("wb", 0) as pipe:
        pipe.write(line % (1, 1) + (line % (2, 2))[:40])
        keys = [one.key for one in first.read()]
        first.mark_spooled()
        pipe.write((line % (2, 2))[40:] + line % (3, 3))
        keys += [one.key for one in first.read()]
    assert len(set(keys)) == 3
    # One more was read by a daemon that could not write it down; two were dropped.
    stats.write_text("entries: 0\noverrun: 2\nread events: 4\n")
    second = trace_source(tracefs)
    assert words(list(second.sweep())) == [
        ("physical-memory", 2 * PAGE, PAGE, keys[1]),
        ("physical-memory", 3 * PAGE, PAGE, keys[2]),
        (1, ""),
        (2, ""),
    ]
    second.mark_spooled()
    assert list(second.sweep()) == []
    # Losses that a line reports are not reported again at the next sweep.
    stats.write_text("entries: 0\noverrun: 7\nread events: 4\n")
    with (folder / "trace_pipe").open("wb", 0) as pipe:
        pipe.write(b"CPU:0 [LOST 7 EVENTS]\n" + line % (5, 5))
        assert [one.count for one in second.read() if isinstance(one, EventsLost)] == [5]
    assert list(second.sweep()) == []
    # The last one was not kept, and then the machine went down: its clock tells nothing any more.
    after = trace_source(tracefs, "another boot")
    assert words(list(after.sweep())) == [(1, "")]


def test_failed_requests_of_a_disk_that_has_gone(tracefs: Path) -> None:
    # It was unplugged before they were read: its name is unknown by then.
    event = tracefs / "instances/test/events/block/block_rq_error"
    event.mkdir(parents=True)
    (event / "enable").write_text("0\n")
    source = trace_source(tracefs)
    with (tracefs / "instances/test/trace_pipe").open("wb", 0) as pipe:
        head = b"    <...>-18649   [001] ..s1.  2207.000001: block_rq_error: 259,9999 "
        pipe.write(head + b"R () 8 + 8 none,0,0 [-5]\n" + head + b"R () 16 + 8 none,0,0 [-110]\n")
        (failed,) = source.read()
    source.close()
    assert isinstance(failed, FailedRange)
    assert (failed.device, failed.start, failed.length) == ("259:9999", 4096, 512)


def test_events_of_logged_requests_are_read_first(tracefs: Path, tmp_path: Path) -> None:
    event = tracefs / "instances/test/events/block/block_rq_error"
    event.mkdir(parents=True)
    (event / "enable").write_text("0\n")
    source = trace_source(tracefs)
    line = (
        b"    <...>-18649   [001] ..s1.  2207.000001: block_rq_error: 259,9999 R () %d + 8 [-5]\n"
    )
    logged = FailedRange(
        source="kmsg",
        at=time.time(),
        key="boot:7",
        device="259:9999",
        start=4096,
        length=512,
        detail={"message": "I/O error, dev nvme9n1, sector 8 op 0x0:(READ) flags 0x0"},
    )
    reads: list[list[Report]] = []
    with (
        StateFolder(tmp_path / "state") as state,
        closing(SourceSet(Host("/"), state, ())) as sources,
        (tracefs / "instances/test/trace_pipe").open("wb", 0) as pipe,
    ):
        sources.open["tracepoint"] = source

        def read(traced: Source) -> None:
            reads.append(list(traced.read()))
            # The kernel traces the request only now.
            pipe.write(line % 8)

        pipe.write(line % 64)
        for other in (
            replace(logged, past="before"),
            replace(logged, at=logged.at - 60),
            replace(logged, detail={}),
        ):
            sources.await_events([other], read)
        assert reads == []
        sources.await_events([logged], read)
        starts = [one.start for found in reads for one in found if isinstance(one, FailedRange)]
        assert starts == [64 * 512, 4096]
        sources.await_events([logged], read)
        assert len(reads) == 2


def test_since_when_the_tracepoints_have_all_failures(tracefs: Path) -> None:
    began = time.time()
    with closing(trace_source(tracefs)) as only_memory:
        assert not only_memory.covers(time.time())
    event = tracefs / "instances/test/events/block/block_rq_error"
    event.mkdir(parents=True)
    (event / "enable").write_text("0\n")
    # Never closed, as when it is killed.
    first = trace_source(tracefs)
    opened = time.time()
    assert first.covers(opened)
    assert not first.covers(began)
    first.mark_spooled()
    # The next daemon takes the instance over; after a boot there is none.
    with closing(trace_source(tracefs)) as second:
        assert second.covers(opened)
    with closing(trace_source(tracefs, "another boot")) as after:
        assert not after.covers(opened)


def test_a_kernel_without_tracepoints(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no tracefs"):
        trace_source(tmp_path)
    (tmp_path / "instances").mkdir()
    with pytest.raises(UnsupportedError, match="none of the tracepoints"):
        trace_source(tmp_path)
    assert list((tmp_path / "instances").iterdir()) == []
