"""The sources that watch each mounted filesystem by itself, and what may keep them waiting."""

import errno
import fcntl
import os
import re
import socket
import struct
from ast import literal_eval
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from tests.support.mounts import small_filesystem
from tests.support.tools import Missing, need_loop_mounts, need_root, run
from tests.support.watch_daemon import until

from whoseblock.fs.registry import monitors
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.sources.base import device_name
from whoseblock.watch.sources.fanotify import FilesystemErrorSource
from whoseblock.watch.sources.monitors import MonitorSource
from whoseblock.watch.sources.mount_probe import MountProbe, ProbeResult
from whoseblock.watch.sources.mounts import MountedFilesystem, MountTable, parse_filesystems
from whoseblock.watch.sources.source_set import SourceSet
from whoseblock.watch.store.reports import EventsLost, FailedFileRange, FailedRange, FilesystemError
from whoseblock.watch.store.state import StateFolder

# ------------------------------------------------------------------ XFS's health monitor


def event_bytes(domain: int, kind: int, *numbers: int) -> bytes:
    """Write an event of the first second, with numbers of 64 bits."""
    return struct.pack(f"=IIQ{len(numbers)}Q", domain, kind, 10**9, *numbers).ljust(64, b"\0")


UNMOUNT = event_bytes(0, 2)


def xfs_health() -> MonitorSource:
    (registered,) = (one for one in monitors() if one.name == "xfs-health")
    return MonitorSource(Host("/"), registered)


class Monitors:
    """A substitute for the kernel: the real monitor is in the virtual machine.

    A child asks for one, and has nothing of ours: so it connects to a socket at ``place``.
    """

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = errno.EEXIST

        def ioctl(*_: object) -> int:
            # Not closed: it is the answer.
            monitor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                monitor.connect(str(place))
            except OSError:
                raise OSError(self.error, os.strerror(self.error)) from None
            return monitor.detach()

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        self._place = place
        self._listener: socket.socket | None = None

    def offer(self) -> None:
        """Provide monitors for all requests."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._place))
        self._listener.listen()
        self._listener.settimeout(20)

    def taken(self) -> socket.socket:
        """Return the descriptor from which another monitor's events are read."""
        assert self._listener is not None
        return self._listener.accept()[0]

    def withdraw(self) -> None:
        """Refuse the next request."""
        if self._listener is not None:
            self._listener.close()
            self._place.unlink()
        self._listener = None


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitors]:
    found = Monitors(tmp_path / "monitor", monkeypatch)
    yield found
    found.withdraw()


def test_another_monitor_is_reported_and_waited_for(tmp_path: Path, kernel: Monitors) -> None:
    status = tmp_path.stat()
    mounted = MountedFilesystem(status.st_dev, "xfs", (str(tmp_path),))
    with closing(xfs_health()) as source:
        source.mounts_changed([mounted, MountedFilesystem(1, "ext4", ("/ext4",))])
        assert source.health.startswith("monitoring 0 filesystems; ")
        assert source.health.endswith("another program already monitors it")
        kernel.offer()
        assert list(source.sweep()) == []
        assert source.health == "monitoring 1 filesystems"
        with kernel.taken() as theirs:
            theirs.send(event_bytes(5, 7, 8, 16))
            theirs.send(event_bytes(0, 1, 3))
            theirs.send(event_bytes(0, 6))
            reports = list(source.read())
            device = device_name(Host("/"), status.st_dev)
            assert isinstance(reports[0], FailedRange)
            assert (reports[0].device, reports[0].start, reports[0].length) == (device, 4096, 8192)
            assert [type(one) for one in reports[-2:]] == [EventsLost, FilesystemError]
            theirs.send(UNMOUNT)
            kernel.withdraw()
            assert list(source.read()) == []
        assert source.health.startswith("monitoring 0 filesystems")


def test_a_filesystem_remounted_before_its_unmount_was_noticed(
    tmp_path: Path, kernel: Monitors
) -> None:
    kernel.offer()
    mounted = MountedFilesystem(tmp_path.stat().st_dev, "xfs", (str(tmp_path),))
    with closing(xfs_health()) as source:
        source.mounts_changed([mounted])
        source.mounts_changed([mounted])
        with kernel.taken() as first:
            first.send(UNMOUNT)
            assert list(source.read()) == []
        assert source.health == "monitoring 1 filesystems"
        with kernel.taken() as second:
            second.send(event_bytes(0, 6))
            assert [type(one) for one in source.read()] == [FilesystemError]


def test_only_medium_errors_are_failures_of_a_file(tmp_path: Path, kernel: Monitors) -> None:
    kernel.offer()
    mounted = MountedFilesystem(tmp_path.stat().st_dev, "xfs", (str(tmp_path),))
    with closing(xfs_health()) as source:
        source.mounts_changed([mounted])
        with kernel.taken() as theirs:
            told = [(9, number) for number in (errno.ENOSPC, errno.EAGAIN, errno.EDQUOT, errno.EIO)]
            # What the kernel says is lost is lost, whatever the reason.
            for kind, number in (*told, (12, errno.ENOSPC)):
                # The generation and the errno share 64 bits.
                theirs.send(event_bytes(8, kind, 0, 4096, 131, number << 32 | 7))
            found = [one for one in source.read() if isinstance(one, FailedFileRange)]
        assert [one.detail for one in found] == [
            {"error": "EIO", "event": "bufwrite"},
            {"error": "ENOSPC", "event": "datalost"},
        ]
        assert (found[0].inode, found[0].generation, found[0].length) == (131, 7, 4096)


def test_a_kernel_without_monitors_is_queried_once(tmp_path: Path, kernel: Monitors) -> None:
    kernel.error = errno.ENOTTY
    mounted = MountedFilesystem(tmp_path.stat().st_dev, "xfs", (str(tmp_path),))
    with closing(xfs_health()) as source:
        source.mounts_changed([mounted])
        kernel.offer()
        assert list(source.sweep()) == []
        source.mounts_changed([mounted])
        told = "monitoring 0 filesystems; this kernel has no health monitor for XFS"
        assert source.health == told
        # What is mounted there later may be another.
        source.mounts_changed([])
        source.mounts_changed([mounted])
        assert source.health == "monitoring 1 filesystems"


def test_a_source_without_a_filesystem_to_watch_does_not_watch(
    tmp_path: Path, kernel: Monitors, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel.error = errno.ENOTTY
    mounted = MountedFilesystem(tmp_path.stat().st_dev, "xfs", (str(tmp_path),))
    with (
        StateFolder(tmp_path / "state") as state,
        closing(SourceSet(Host("/"), state, ("xfs-health",))) as sources,
    ):
        list(sources.mounts_changed([mounted]))
        sources.open_missing()
        why = "monitoring 0 filesystems; this kernel has no health monitor for XFS"
        assert sources.health == {"xfs-health": (False, why)}
        assert "source=xfs-health watched=false health=" in capfd.readouterr().err
        # Nothing escapes where there is nothing to watch.
        list(sources.mounts_changed([]))
        assert sources.health == {"xfs-health": (True, "monitoring 0 filesystems")}
        kernel.offer()
        list(sources.mounts_changed([mounted]))
        assert sources.health == {"xfs-health": (True, "monitoring 1 filesystems")}


def test_a_filesystem_is_found_where_no_other_covers_it(tmp_path: Path, kernel: Monitors) -> None:
    kernel.offer()
    device = tmp_path.stat().st_dev
    with closing(xfs_health()) as source:
        source.mounts_changed([MountedFilesystem(device + 1, "xfs", (str(tmp_path),))])
        assert source.health.endswith(f"{tmp_path}: covered by another mount")
        source.mounts_changed([MountedFilesystem(device, "xfs", ("/proc", "/none", str(tmp_path)))])
        assert source.health == "monitoring 1 filesystems"


# ------------------------------------------------------------------ the mount table


def block_device() -> Path:
    for path in sorted(Path("/dev").iterdir()):
        if path.is_block_device():
            return path
    pytest.skip("this machine shows no block device")


def test_every_filesystem_on_a_block_device_is_in_the_table() -> None:
    device = block_device()
    table = (
        f"30 1 0:77 /sub /part rw - manyfs {device} rw\n"
        f"31 1 0:77 / /whole rw - manyfs {device} rw\n"
        "32 1 8:1 / /srv rw - onefs /dev/none rw\n"
        "33 1 0:78 / /tmp rw - tmpfs tmpfs rw\n"
        "34 1 0:79 / /mnt rw - nfs server:/dev rw\n"
        "35 1 0:80 / /gone rw - manyfs /dev/none rw\n"
    )
    number, one = os.makedev(0, 77), os.makedev(8, 1)
    assert parse_filesystems(table) == {
        number: MountedFilesystem(
            number, "manyfs", ("/whole", "/part"), frozenset((30, 31)), device.stat().st_rdev
        ),
        one: MountedFilesystem(one, "onefs", ("/srv",), frozenset((32,)), one),
    }


def test_a_filesystem_with_subvolumes_is_recognised_by_its_mount(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_PATH)
    fields = Path(f"/proc/self/fdinfo/{folder}").read_text().split()
    os.close(folder)
    mount = int(fields[fields.index("mnt_id:") + 1])
    # Its files have other numbers than the mount table.
    anonymous = os.makedev(0, 0xFFFFF)
    found = MountedFilesystem(anonymous, "manyfs", (str(tmp_path),), frozenset((mount,)))
    os.close(found.open())
    for other in (
        found._replace(mounts=frozenset((mount + 1,))),
        found._replace(device=os.makedev(8, 0xFFFFF)),
    ):
        with pytest.raises(OSError, match="covered by another mount"):
            other.open()


# ------------------------------------------------------------------ what may never answer


def test_an_unresponsive_device_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Like a server that hangs: no signal ends a process that waits for it.
    monkeypatch.setattr(os, "kill", lambda *_: None)
    asked, answer = tmp_path / "asked", tmp_path / "answer"
    os.mkfifo(answer)

    def question(mounted: MountedFilesystem) -> ProbeResult:
        if mounted.kind == "hangs":
            with asked.open("a") as file:
                file.write("asked\n")
            with answer.open("rb", 0) as server:
                server.read(1)
        if mounted.kind == "fails":
            raise PermissionError(errno.EPERM, "not permitted")
        return mounted.kind.encode(), ()

    kinds = ("first", "hangs", "fails", "last")
    about = [MountedFilesystem(number, kind, ("/",)) for number, kind in enumerate(kinds)]
    asker = MountProbe(patience=0.5)
    for _ in range(3):
        told = {one.kind: str(what) for one, what in asker.probe(about, question)}
        assert told == {
            "first": "(b'first', ())",
            "hangs": f"[Errno {errno.ETIMEDOUT}] no answer",
            "fails": f"[Errno {errno.EPERM}] not permitted",
            "last": "(b'last', ())",
        }
    assert asked.read_text() == "asked\n"
    # The server is back, and answers old and new requests.
    (hangs,) = (one for one in about if one.kind == "hangs")
    with answer.open("r+b", 0) as server:
        server.write(b"..")
        until(lambda: asker.probe([hangs], question) == [(hangs, (b"hangs", ()))])


def test_a_probe_inherits_only_the_descriptors_to_keep(tmp_path: Path) -> None:
    # A child that hangs outlives the daemon: with its lock there could be no other.
    with (tmp_path / "kept").open("wb") as mark_spooled, (tmp_path / "lock").open("wb") as lock:

        def question(_: MountedFilesystem) -> ProbeResult:
            held = [int(name) for name in os.listdir("/proc/self/fd")]
            return repr(sorted(held)).encode(), (mark_spooled.fileno(),)

        ((_, told),) = MountProbe().probe(
            [MountedFilesystem(1, "x", ("/",))], question, keep=(mark_spooled.fileno(),)
        )
        assert not isinstance(told, OSError)
        held = literal_eval(told[0].decode())
        assert mark_spooled.fileno() in held
        assert lock.fileno() not in held
        assert len(held) == 3  # with the socket, and the folder that is read
        (descriptor,) = told[1]
        assert not os.get_inheritable(descriptor)
        assert os.path.samestat(os.fstat(descriptor), os.fstat(mark_spooled.fileno()))
        os.close(descriptor)


# ------------------------------------------------------------------ errors of filesystems


@contextmanager
def mounted_ext4(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    run(["mount", "-o", "loop,errors=continue", image, folder])
    try:
        yield folder
    finally:
        run(["umount", folder])


def test_errors_that_a_filesystem_finds(tmp_path: Path) -> None:
    # A real ext4 with a damaged directory.
    need_root()
    need_loop_mounts()
    image = tmp_path / "ext4"
    with closing(fanotify()) as source:
        with small_filesystem("ext4", image, 16 << 20) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").touch()
            inode, size = (folder / "sub").stat().st_ino, os.statvfs(folder).f_bsize
        block = int(run(["debugfs", "-R", "bmap sub 0", image]).split()[-1])
        with image.open("r+b") as file:
            file.seek(block * size)
            file.write(b"\xff" * size)
        with closing(MountTable()) as mounts, mounted_ext4(image, tmp_path / "at") as folder:
            source.mounts_changed(mounts.read().values())
            with pytest.raises(OSError, match=r"Structure needs cleaning|Bad message|error"):
                (folder / "sub" / "file").stat()
            ills = until(lambda: [one for one in source.read() if isinstance(one, FilesystemError)])
    assert ills[0].place == str(folder)
    assert ills[0].detail["inode"] == inode
    assert "EFSCORRUPTED" in ills[0].what or "EUCLEAN" in ills[0].what or "EBADMSG" in ills[0].what


def test_a_covered_mount_is_not_confused_with_the_covering_one(tmp_path: Path) -> None:
    need_root()
    need_loop_mounts()
    at, other = tmp_path / "at", tmp_path / "other"
    at.mkdir()
    other.mkdir()
    for name in ("below", "above"):
        with small_filesystem("ext4", tmp_path / name, 16 << 20):
            pass
    with ExitStack() as undo, closing(fanotify()) as source, closing(MountTable()) as table:
        run(["mount", "-o", "loop", tmp_path / "below", at])
        undo.callback(run, ["umount", at])
        below = at.stat().st_dev
        run(["mount", "-o", "loop", tmp_path / "above", at])
        above_again = undo.enter_context(ExitStack())
        above_again.callback(run, ["umount", at])

        def marked() -> set[int]:
            mounts = table.read()
            source.mounts_changed([one for at, one in mounts.items() if at in (below, above)])
            return marks(source)

        above = at.stat().st_dev
        assert marked() == {above}
        assert source.health == f"1 filesystems marked; {at}: covered by another mount"
        # It is found wherever it is to be seen, too.
        above_again.close()
        run(["mount", "--bind", at, other])
        undo.callback(run, ["umount", other])
        run(["mount", "-o", "loop", tmp_path / "above", at])
        undo.callback(run, ["umount", at])
        above = at.stat().st_dev
        assert marked() == {below, above}
        assert source.health == "2 filesystems marked"


def test_a_filesystem_that_was_mounted_again_is_marked_again(tmp_path: Path) -> None:
    # In the table it looks as before.
    need_root()
    need_loop_mounts()
    with small_filesystem("ext4", tmp_path / "ext4", 16 << 20):
        pass
    with closing(fanotify()) as source, closing(MountTable()) as table:
        for _ in range(2):
            with mounted_ext4(tmp_path / "ext4", tmp_path / "at") as folder:
                device = folder.stat().st_dev
                source.mounts_changed([table.read()[device]])
                assert marks(source) == {device}
            (tmp_path / "at").rmdir()


def fanotify() -> FilesystemErrorSource:
    try:
        return FilesystemErrorSource()
    except OSError as error:
        raise Missing(f"fanotify is not for us here: {error}") from error


def marks(source: FilesystemErrorSource) -> set[int]:
    """Return the devices whose filesystems the kernel says are marked."""
    text = Path(f"/proc/self/fdinfo/{source.fileno()}").read_text()
    numbers = (
        int(number, 16) for number in re.findall(r"^fanotify sdev:(\w+)", text, re.MULTILINE)
    )
    return {os.makedev(number >> 20, number & 0xFFFFF) for number in numbers}
