"""Generated texts of /proc, compared with the facts that they were generated from."""

import errno
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from whoseblock import process_text, processes
from whoseblock.fs.base import Mapping, OpenFile
from whoseblock.processes import Found, Wanted, find_processes

PAGE = 4096
#: In the shape of a line of maps, and of what the kernel adds to a path or makes of a newline.
HOSTILE = [b" 08:01 131 ", b" (deleted)", b"\\012", b"7f00-8000 r--s 00000000 08:01 131 ", b"\xff"]

names = st.lists(
    st.sampled_from(HOSTILE) | st.binary(max_size=8).map(lambda name: name.replace(b"\0", b"")),
    max_size=6,
).map(b"".join)
devices = st.sampled_from([(8, 1), (0, 0x2A), (259, 0x10005)])
inodes = st.sampled_from([131, 13, 1, 1310, (1 << 63) + 131])


class Mapped(NamedTuple):
    """One mapping: where, how much, from where in which file, by what name."""

    address: int
    length: int
    offset: int
    permissions: str
    device: tuple[int, int]
    inode: int
    name: bytes

    def line(self) -> bytes:
        """Write it as fs/proc/task_mmu.c does: the path after column 73, without newlines."""
        head = f"{self.address:08x}-{self.address + self.length:08x} {self.permissions}"
        head += f" {self.offset:08x} {self.device[0]:02x}:{self.device[1]:02x} {self.inode} "
        return head.ljust(73).encode() + b"/" + self.name.replace(b"\n", b"\\012") + b"\n"


@st.composite
def maps(draw: st.DrawFn) -> list[Mapped]:
    """Make what one process has mapped."""
    address = draw(st.integers(1, 1 << 34)) * PAGE
    mapped = []
    for _ in range(draw(st.integers(0, 12))):
        length = draw(st.integers(1, 20)) * PAGE
        offset = draw(st.integers(0, 30) | st.just(1 << 40)) * PAGE
        permissions = "".join(draw(st.sampled_from(both)) for both in ("r-", "w-", "x-", "sp"))
        file = draw(devices), draw(inodes)
        mapped.append(Mapped(address, length, offset, permissions, *file, draw(names)))
        address += length + draw(st.integers(0, 3)) * PAGE
    return mapped


def stat_text(
    command: bytes, *, state: str = "S", flags: int = 0x400000, start: int = 100, memory: int = 1
) -> bytes:
    # The kernel escapes newlines and backslashes here, and only here.
    escaped = command.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    fields = [state, *"1 2 3 4 5".split(), flags, *range(10), 1, 0, start, memory, *range(1, 30)]
    return b"7 (" + escaped + b") " + " ".join(map(str, fields)).encode() + b"\n"


def process_folder(proc: Path, pid: int, command: bytes = b"name", start: int = 100) -> Path:
    """Make the folder of a process that has nothing."""
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "fdinfo").mkdir()
    (folder / "maps").write_bytes(b"")
    (folder / "stat").write_bytes(stat_text(command, start=start))
    (folder / "comm").write_bytes(command + b"\n")
    (folder / "status").write_bytes(b"Name:\tUid:\t9\nUid:\t1\t2\t3\t4\nNSpid:\t7\t5\t3\nX:\t1\n")
    (folder / "cgroup").write_bytes(b"0::/system.slice/a.service\n")
    (proc / "stat").write_bytes(b"cpu  1 2\nbtime 1600000000\nprocesses 3\n")
    return folder


@settings(max_examples=150)
@given(
    maps(),
    st.lists(
        st.tuples(devices, inodes, st.integers(0, 40 * PAGE), st.integers(1, 9 * PAGE)), max_size=14
    ),
    st.sampled_from([30, 100, 1 << 16]),
)
def test_generated_mappings_are_parsed(
    mapped: list[Mapped],
    asked: list[tuple[tuple[int, int], int, int, int]],
    piece: int,
) -> None:
    wanted = [
        Wanted(os.makedev(*device), inode, start, length) for device, inode, start, length in asked
    ]
    with tempfile.TemporaryDirectory() as top, pytest.MonkeyPatch.context() as patch:
        # However small the pieces are that it is read in.
        patch.setattr(processes, "_PIECE", piece)
        patch.setattr(processes, "_MOST_PIECES", 10)
        folder = process_folder(Path(top), 7)
        (folder / "maps").write_bytes(b"".join(one.line() for one in mapped))
        found = find_processes(wanted, Path(top)).processes
    truth = []
    for device, inode, start, length in asked:
        expected = []
        for address, size, offset, permissions, its_device, its_inode, _ in mapped:
            first, end = max(start, offset), min(start + length, offset + size)
            if (its_device, its_inode) == (device, inode) and first < end:
                how = [letter in permissions for letter in "srwx"]
                expected.append(Mapping(address + first - offset, end - first, first, *how))
        truth.append([tuple(expected)] if expected else [])
    assert [[process.mappings for process in one] for one in found] == truth


@given(st.binary(max_size=15).map(lambda name: name.partition(b"\0")[0]), st.integers(0, 1 << 60))
def test_a_hostile_name_does_not_shift_the_fields_of_stat(command: bytes, start: int) -> None:
    stat = process_text.parse_stat(stat_text(command, start=start, state="Z", flags=0x00208040))
    assert (stat.zombie, stat.kernel, stat.threads, stat.start_time) == (True, True, 1, start)
    assert not process_text.parse_stat(stat_text(command)).kernel


@given(
    position=st.integers(-1, 1 << 62),
    flags=st.sampled_from([(0o100000, "O_RDONLY"), (0o2100001, "O_WRONLY"), (0o2, "O_RDWR")]),
    tells_inode=st.booleans(),
    knows_mount=st.booleans(),
    wrong=st.sampled_from(["", "inode", "mount"]),
    more=st.sampled_from(["", "lock:\t1: POSIX  ADVISORY  WRITE 7 08:01:131 0 EOF\n"]),
)
def test_generated_descriptors_are_parsed(  # noqa: PLR0913 - hypothesis gives each by its name
    *,
    position: int,
    flags: tuple[int, str],
    tells_inode: bool,
    knows_mount: bool,
    wrong: str,
    more: str,
) -> None:
    # Older kernels do not tell the inode, and some mounts are not in a process's list.
    with tempfile.TemporaryDirectory() as top:
        file = Path(top, "a file\n 1 1")
        file.write_bytes(b"")
        status = file.stat()
        folder = process_folder(Path(top, "proc"), 7)
        (folder / "fd/3").symlink_to("socket:[131]")
        (folder / "fd/12").symlink_to(file)
        text = f"pos:\t{position}\nflags:\t0{flags[0]:o}\nmnt_id:\t{30 + (wrong == 'mount')}\n"
        if tells_inode:
            text += f"ino:\t{status.st_ino + (wrong == 'inode')}\n"
        (folder / "fdinfo/12").write_text(text + more)
        device = os.major(status.st_dev), os.minor(status.st_dev)
        mounts = "31 1 0:999 / /b\\040\\012c rw - xfs /dev/sdb rw\n"
        if knows_mount:
            mounts += f"30 1 {device[0]}:{device[1]} / / rw - xfs /dev/sda rw\n"
        (folder / "mountinfo").write_text(mounts)
        found = find_processes([Wanted(status.st_dev, status.st_ino, None, 0)], Path(top, "proc"))
    dropped = wrong == "mount" or (wrong == "inode" and tells_inode)
    assert [[process.open for process in one] for one in found.processes] == [
        [] if dropped else [(OpenFile(12, (flags[1],), position),)]
    ]


def test_the_description_of_a_process(tmp_path: Path) -> None:
    for pid, command in ((10, b"\xff)"), (9, b"n\n")):
        folder = process_folder(tmp_path, pid, command, start=12345678)
        (folder / "maps").write_bytes(Mapped(PAGE, PAGE, 0, "r--s", (8, 1), 131, b"a").line())
    (tmp_path / "9" / "cgroup").write_bytes(b"")
    (tmp_path / "9" / "status").write_bytes(b"Name:\tn\\n\nUid:\t0\t65534\t0\t0\nNSpid:\t9\n")
    (tmp_path / "notes").write_bytes(b"")
    device = os.makedev(8, 1)
    found = find_processes([Wanted(device, 131, 0, 10)], tmp_path)
    assert found == Found(found.processes, 0, unlisted=True, omitted=0)
    first, second = found.processes[0]
    # 123,456 seconds after the boot, which was at 2020-09-13T12:26:40Z.
    assert os.sysconf("SC_CLK_TCK") == 100
    assert (second.pid, second.started, second.start_time) == (10, "2020-09-14T22:44:16Z", 12345678)
    assert (second.command, second.uid, second.namespace_pid) == ("\udcff)", 2, 3)
    assert (second.cgroup, second.unit) == ("/system.slice/a.service", "a.service")
    assert (first.pid, first.command, first.uid) == (9, "n\n", 65534)
    assert (first.namespace_pid, first.cgroup, first.unit) == (UNSET, UNSET, UNSET)


@pytest.mark.parametrize("memory", [0, 4096])
def test_a_process_that_is_ending_is_not_one_that_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = process_folder(tmp_path, 10)
    monkeypatch.setattr(processes, "_names", refuse)
    (folder / "stat").write_bytes(stat_text(b"name", memory=memory))
    found = find_processes([Wanted(os.makedev(8, 1), 131, 0, 10)], tmp_path)
    assert (found.hidden, found.unanswered) == (memory > 0, 0)


@pytest.mark.parametrize(
    ("text", "cgroup", "unit"),
    [
        (b"0::/\n", "/", UNSET),
        (b"0::/system.slice/nginx.service\n", "/system.slice/nginx.service", "nginx.service"),
        (
            b"0::/user.slice/user-0.slice/user@0.service/app.slice/a-1.scope/x\n",
            "/user.slice/user-0.slice/user@0.service/app.slice/a-1.scope/x",
            "a-1.scope",
        ),
        (b"0::/a.slice/a-b.slice/c\n", "/a.slice/a-b.slice/c", "a-b.slice"),
        (b"0::/a.slice/_cpu.service\n", "/a.slice/_cpu.service", "cpu.service"),
        (b"0::/a.slice/d\\x2de.mount\n", "/a.slice/d\\x2de.mount", "d\\x2de.mount"),
        (b"0::/b.service (deleted)\n", "/b.service (deleted)", "b.service"),
        (b"0::/a:b/c\xff.swap\n", "/a:b/c\udcff.swap", "c\udcff.swap"),
        (
            b"9:pids:/x\n1:name=systemd:/s.slice/old.service\n",
            "/s.slice/old.service",
            "old.service",
        ),
        (b"1:name=systemd:/s.slice/old.service\n0::/\n", "/s.slice/old.service", "old.service"),
        (b"1:name=systemd:/\n0::/new.service\n", "/new.service", "new.service"),
        (b"9:pids:/x.service\n", UNSET, UNSET),
        (b"", UNSET, UNSET),
    ],
)
def test_control_groups_and_units(text: bytes, cgroup: str, unit: str) -> None:
    parsed = process_text.parse_cgroup(text)
    found = process_text.unit_of(parsed) if isinstance(parsed, str) else UNSET
    assert (parsed, found) == (cgroup, unit)


def test_a_line_of_any_length_takes_no_memory(tmp_path: Path) -> None:
    folder = process_folder(tmp_path, 7)
    line = Mapped(PAGE, PAGE, 0, "r--s", (8, 1), 131, b"d" * (20 << 20)).line()
    short = Mapped(3 * PAGE, PAGE, 0, "r--s", (8, 1), 131, b"e").line()
    (folder / "maps").write_bytes(short + line + line + short)
    longest = 0
    descriptor = os.open(folder, os.O_PATH)
    try:
        for lines in processes._lines(descriptor, "maps"):
            longest = max(longest, len(lines))
    finally:
        os.close(descriptor)
    assert longest < 5 << 20
    found = find_processes([Wanted(os.makedev(8, 1), 131, 0, PAGE)], tmp_path)
    assert [one.address // PAGE for one in found.processes[0][0].mappings] == [3, 1, 1, 3]
