"""Processes that map parts of files or have them open: real ones, which report what they did."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import UNSET
from tests.support.failing_image import failing_device
from tests.support.mapping_processes import running
from tests.support.mounts import mounted
from tests.support.tools import CHECKOUT, need_loop_mounts, need_root, run
from tests.support.xfs_images import Geometry, make_image

from whoseblock import process_text, processes
from whoseblock.fs.base import Mapping, OpenFile, Process
from whoseblock.processes import Found, Wanted, find_processes

PAGE = 4096
UNPRIVILEGED = 65534
#: In the pid namespace that the kernel booted with, and in no other, the second process is this.
LISTS_ALL = Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n"

HOLD = "file = os.open(path, os.O_RDONLY)\nready(file)"
MAP_FIRST_PAGE = "ready(map_file(0, PAGE))"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * PAGE))
    return path


def part(path: Path | bytes, start: int | None = 0, length: int = PAGE) -> Wanted:
    status = os.stat(path)
    return Wanted(status.st_dev, status.st_ino, start, length)


def users(*wanted: Wanted) -> list[tuple[Process, ...]]:
    return find_processes(wanted).processes


def mappings_by_pid(found: tuple[Process, ...]) -> dict[int, tuple[Mapping, ...]]:
    assert [process.pid for process in found] == sorted(process.pid for process in found)
    return {process.pid: process.mappings for process in found}


def shared(address: int, length: int, file_offset: int) -> Mapping:
    return Mapping(
        address, length, file_offset, shared=True, readable=True, writable=False, executable=False
    )


def test_a_search_ends_in_time(tmp_path: Path) -> None:
    status = tmp_path.stat()
    found = find_processes([Wanted(status.st_dev, status.st_ino, 0, 1)], seconds=-1.0)
    assert found.processes == [()]
    assert found.unsearched > 0


def test_each_process_is_found_with_the_part_that_it_mapped(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "a file (deleted) \n 00:01 2 with: spaces"
    os.link(file, other)
    with (
        running("ready(map_file(0, 4 * PAGE))", file) as (first, low),
        running("ready(map_file(2 * PAGE, 4 * PAGE, READ | WRITE, PRIVATE))", other) as (
            second,
            middle,
        ),
        running(
            "ready(map_file(8 * PAGE, 2 * PAGE, WRITE), map_file(3 * PAGE, PAGE, EXEC, PRIVATE),"
            " map_file(3 * PAGE, 9 * PAGE, NONE))",
            other,
        ) as (third, high, code, guarded),
    ):
        asked = [(0, PAGE), (2 * PAGE, PAGE), (3 * PAGE + 7, 3 * PAGE), (12 * PAGE, 4 * PAGE)]
        asked += [(0, 16 * PAGE), (9 * PAGE + 4095, 1)]
        found = users(*(part(file, *one) for one in asked))

    def writable(length: int, offset: int) -> Mapping:
        address = middle + offset - 2 * PAGE
        return Mapping(
            address, length, offset, shared=False, readable=True, writable=True, executable=False
        )

    def in_third(asked_start: int, asked_length: int) -> tuple[Mapping, ...]:
        truth = []
        for address, offset, pages, is_shared, writes, runs in (
            (high, 8, 2, True, True, False),
            (code, 3, 1, False, False, True),
            (guarded, 3, 9, True, False, False),
        ):
            inside = sorted(
                set(range(asked_start, asked_start + asked_length))
                & set(range(offset * PAGE, (offset + pages) * PAGE))
            )
            if inside:
                where = address + inside[0] - offset * PAGE
                truth.append(
                    Mapping(where, len(inside), inside[0], is_shared, False, writes, runs)  # noqa: FBT003 - as the record has them
                )
        return tuple(sorted(truth, key=lambda mapping: mapping.address))

    assert [mappings_by_pid(one) for one in found] == [
        {first: (shared(low, PAGE, 0),)},
        {
            first: (shared(low + 2 * PAGE, PAGE, 2 * PAGE),),
            second: (writable(PAGE, 2 * PAGE),),
        },
        {
            first: (shared(low + 3 * PAGE + 7, PAGE - 7, 3 * PAGE + 7),),
            second: (writable(3 * PAGE - 7, 3 * PAGE + 7),),
            third: in_third(*asked[2]),
        },
        {},
        {
            first: (shared(low, 4 * PAGE, 0),),
            second: (writable(4 * PAGE, 2 * PAGE),),
            third: in_third(*asked[4]),
        },
        {third: in_third(*asked[5])},
    ]
    assert all(process.open == () for one in found for process in one)


def test_descriptors_are_found_with_their_flags(file: Path) -> None:
    program = """
    def one(flags, seek=0):
        descriptor = os.open(path, flags)
        seek and os.lseek(descriptor, seek, 0)
        return descriptor
    files = [one(os.O_RDONLY, 123), one(os.O_WRONLY | os.O_APPEND), one(os.O_PATH),
             one(os.O_RDWR | os.O_SYNC | os.O_NONBLOCK), one(os.O_RDWR | os.O_DSYNC),
             one(os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)]
    others = [os.open(sys.executable, os.O_RDONLY), *os.pipe(), os.memfd_create("x")]
    ready(*files)
    """
    flags = [
        ("O_RDONLY",),
        ("O_WRONLY", "O_APPEND"),
        ("O_PATH",),
        ("O_RDWR", "O_SYNC", "O_NONBLOCK"),
        ("O_RDWR", "O_DSYNC"),
        ("O_RDONLY", "O_NOATIME", "O_NOFOLLOW"),
    ]
    with (
        running("if True:" + program, file) as (pid, *files),
        running(MAP_FIRST_PAGE, file) as (mapper, address),
    ):
        metadata, first, second = users(
            part(file, None), part(file), part(file, start=PAGE, length=PAGE)
        )
    expected = tuple(
        OpenFile(number, names, 123 if number == files[0] else 0)
        for number, names in zip(files, flags, strict=True)
    )
    assert {process.pid: process.open for process in metadata} == {pid: expected}
    assert {process.pid: process.open for process in first} == {pid: expected, mapper: ()}
    assert mappings_by_pid(first) == {pid: (), mapper: (shared(address, PAGE, 0),)}
    assert second == metadata


def test_an_open_directory_is_found(tmp_path: Path) -> None:
    with running("ready(os.open(path, os.O_RDONLY | os.O_DIRECTORY))", tmp_path) as (pid, number):
        (found,) = users(part(tmp_path, None))
    assert [process.pid for process in found] == [pid]
    assert found[0].open == (OpenFile(number, ("O_RDONLY", "O_DIRECTORY"), 0),)


def test_a_deleted_file_is_found(file: Path) -> None:
    with running("ready(map_file(0, PAGE), os.open(path, os.O_RDWR))", file) as (
        pid,
        address,
        number,
    ):
        wanted = part(file)
        file.unlink()
        (found,) = users(wanted)
    assert mappings_by_pid(found) == {pid: (shared(address, PAGE, 0),)}
    assert found[0].open == (OpenFile(number, ("O_RDWR",), 0),)


def test_another_file_at_the_same_path_is_another_file(file: Path) -> None:
    with running(MAP_FIRST_PAGE, file):
        file.rename(file.with_name("away"))
        file.write_bytes(bytes(PAGE))
        assert users(part(file)) == [()]


def test_offsets_of_more_than_32_bits(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    start = (5 << 40) + 3 * PAGE
    with running(f"ready(map_file({start}, 8 << 30, NONE))", path) as (pid, address):
        wanted = part(path, start + (5 << 30) + 1, 6 << 30)
        (found, low, before) = users(
            wanted, part(path, start % (1 << 32)), part(path, start - 1, 1)
        )
    length = (3 << 30) - 1
    expected = Mapping(
        address + (5 << 30) + 1,
        length,
        start + (5 << 30) + 1,
        shared=True,
        readable=False,
        writable=False,
        executable=False,
    )
    assert mappings_by_pid(found) == {pid: (expected,)}
    assert (low, before) == ((), ())


def test_a_process_in_another_mount_namespace_shows_its_own_path(
    file: Path, tmp_path: Path
) -> None:
    need_root()
    place = tmp_path / "place"
    place.mkdir()
    program = """if True:
    call("mount", b"none", b"/", None, 1 << 18 | 1 << 14, None)  # MS_PRIVATE | MS_REC
    call("mount", os.fsencode(os.path.dirname(path)), os.fsencode(more[0]), None, 1 << 12, None)
    there = more[0] + "/file"
    ready(map_file(PAGE, PAGE, at=there), os.open(there, os.O_RDONLY))
    """
    with running(program, file, str(place), under=("unshare", "-m")) as (pid, address, number):
        assert not (place / "file").exists()
        (found,) = users(part(file, PAGE))
    assert mappings_by_pid(found) == {pid: (shared(address, PAGE, PAGE),)}
    assert [one.fd for one in found[0].open] == [number]


def test_a_process_in_another_pid_namespace_has_another_number(file: Path) -> None:
    need_root()
    program = "ready(map_file(0, PAGE), os.getpid())"
    with (
        running(program, file, under=("unshare", "-p", "-f")) as (pid, address, inner),
        running(program, file) as (plain, plain_address, _),
    ):
        (found,) = users(part(file))
    assert inner == 1
    assert mappings_by_pid(found) == {
        pid: (shared(address, PAGE, 0),),
        plain: (shared(plain_address, PAGE, 0),),
    }
    assert {process.pid: process.namespace_pid for process in found} == {pid: 1, plain: UNSET}


@pytest.mark.parametrize("name", [b") R 1 (2)\n)\xff)", b"(", b"", b"\\\n (deleted)", b"\xc3\xa9"])
def test_process_names_of_any_bytes(file: Path, name: bytes) -> None:
    with running("rename(bytes.fromhex(more[0]))\nready(map_file(0, PAGE))", file, name.hex()) as (
        pid,
        address,
    ):
        (found,) = users(part(file))
    assert mappings_by_pid(found) == {pid: (shared(address, PAGE, 0),)}
    assert found[0].command.encode(errors="surrogateescape") == name


def test_user_and_start_time_of_a_process(file: Path) -> None:
    if os.geteuid() == 0:
        need_root()  # the process has another user, into which only CAP_SYS_PTRACE lets us look
    before = time.time()
    program = "file = os.open(path, os.O_RDONLY)\nos.geteuid() or os.setresuid(1, 2, 3)\nready()"
    with running(program, file) as (pid,):
        after = time.time()
        (process,) = users(part(file))[0]
        # This one has an ordinary name, so that any parser works.
        assert process.start_time == int(Path(f"/proc/{pid}/stat").read_text().split()[21])
    assert process.uid == (os.geteuid() or 2)
    assert process.command.startswith("python")
    started = time.strptime(process.started, "%Y-%m-%dT%H:%M:%SZ")
    # The kernel gives the boot in whole seconds.
    assert before - 2 <= time.mktime(started) - time.timezone <= after + 2


def test_threads_are_found_after_their_leader_ended(file: Path) -> None:
    program = """if True:
    address, number = map_file(0, PAGE), os.open(path, os.O_RDONLY)
    def live():
        while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        ready(address, number)
        os._exit(0)
    threading.Thread(target=live).start()
    libc.syscall(EXIT, 0)
    """
    with running(program, file) as (pid, address, number):
        assert Path(f"/proc/{pid}/maps").read_bytes() == b""
        (found,) = users(part(file))
    assert mappings_by_pid(found) == {pid: (shared(address, PAGE, 0),)}
    assert [one.fd for one in found[0].open] == [number]


@pytest.mark.parametrize("known", [True, False])
def test_threads_can_have_descriptors_of_their_own(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    if not known:
        monkeypatch.setattr(processes, "_KCMP", {})
    program = """if True:
    ours = os.open(path, os.O_RDONLY)
    numbers = []
    def live(flags, own):
        if own:
            call("unshare", 0x400)  # CLONE_FILES
            os.close(ours)
            blank = os.open("/dev/null", os.O_RDONLY)
            numbers.append(os.open(path, flags))
        time.sleep(1000)
    for flags, own in (os.O_WRONLY, 1), (os.O_RDWR, 1), (0, 0), (0, 0):
        threading.Thread(target=live, args=(flags, own), daemon=True).start()
    while len(numbers) < 2:
        time.sleep(0.01)
    ready(ours, sorted(numbers))
    """
    with running(program, file) as (pid, ours, (low, high)):
        (found,) = users(part(file))
    assert [process.pid for process in found] == [pid]
    expected = {(ours, ("O_RDONLY",)), (low, ("O_WRONLY",)), (high, ("O_RDWR",))}
    swapped = {(ours, ("O_RDONLY",)), (low, ("O_RDWR",)), (high, ("O_WRONLY",))}
    assert {(one.fd, one.flags) for one in found[0].open} in (expected, swapped)


def test_processes_that_end_during_the_scan_are_no_error(file: Path) -> None:
    # Each child gives itself its name before it maps the file, and is another program after.
    program = """if True:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(json.dumps([pid]), flush=True)
    while True:
        if os.fork() == 0:
            rename(b"w%d" % os.getpid())
            map_file(0, PAGE)
            # Those of a second are found even by a scan on a busy machine.
            time.sleep(1 if os.getpid() % 16 == 0 else os.getpid() % 50 / 200)
            os.getpid() % 2 or os.execv("/bin/sleep", ["sleep", "0.02"])
            os._exit(0)
        time.sleep(0.01)
    """
    seen: set[int] = set()
    with running(program, file) as (spawner,):
        end = time.monotonic() + 30
        while len(seen) < 100 and time.monotonic() < end:
            (found,) = users(part(file))
            for process in found:
                assert process.pid != spawner
                assert process.command == f"w{process.pid}"
                # It has the file open just before it has it mapped.
                assert process.open or [one.length for one in process.mappings] == [PAGE]
                seen.add(process.pid)
    assert seen


def test_a_reflinked_copy_is_another_file(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "image", Geometry("reflink", parent=False))
    with mounted(image) as folder:
        first, copy = Path(os.fsdecode(folder), "first"), Path(os.fsdecode(folder), "copy")
        first.write_bytes(os.urandom(8 * PAGE))
        run(["cp", "--reflink=always", first, copy])
        with running("ready(map_file(PAGE, PAGE))", copy) as (pid, address):
            ours, theirs = users(part(first, 0, 8 * PAGE), part(copy, 0, 8 * PAGE))
    assert ours == ()
    assert mappings_by_pid(theirs) == {pid: (shared(address, PAGE, PAGE),)}


def test_many_files_at_once(tmp_path: Path) -> None:
    program = """if True:
    names = sorted(os.listdir(path))
    ready(*(map_file(0, PAGE, at=f"{path}/{name}") for name in names[::2]))
    """
    paths = [tmp_path / f"{number:02}" for number in range(40)]
    for path in paths:
        path.write_bytes(bytes(PAGE))
    with running(program, tmp_path) as (pid, *addresses):
        found = users(*map(part, paths))
    expected = [{pid: (shared(address, PAGE, 0),)} for address in addresses]
    assert [mappings_by_pid(one) for one in found[::2]] == expected
    assert set(found[1::2]) == {()}


def test_more_mappings_than_are_read_at_once(file: Path) -> None:
    program = "ready(*(map_file(number % 16 * PAGE, PAGE) for number in range(9000)))"
    with running(program, file) as (pid, *addresses):
        assert Path(f"/proc/{pid}/maps").stat().st_size == 0
        found = find_processes([part(file, page * PAGE) for page in range(16)])
        all_of_it = find_processes([part(file, 0, 16 * PAGE)])
    for page, one in enumerate(found.processes):
        expected = sorted(addresses[page::16])
        assert mappings_by_pid(one) == {
            pid: tuple(shared(address, PAGE, page * PAGE) for address in expected)
        }
    assert found.omitted == 0
    assert len(all_of_it.processes[0][0].mappings) == 1000
    assert all_of_it.omitted >= 1000


def test_no_files_wanted() -> None:
    assert find_processes([]) == Found([], 0, unlisted=False, omitted=0)


def test_a_path_of_any_length(tmp_path: Path) -> None:
    # Of a descriptor whose path is longer than a page the kernel does not tell the path.
    top = tmp_path / "deep"
    top.mkdir()
    program = """if True:
    os.chdir(path)
    for _ in range(40):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    file = os.open("file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, PAGE)
    ready(map_file(0, PAGE, at="file"), file, os.fstat(file).st_ino)
    """
    try:
        with running(program, top) as (pid, address, number, inode):
            with pytest.raises(OSError, match="too long"):
                os.readlink(f"/proc/{pid}/fd/{number}")
            (found,) = users(Wanted(top.stat().st_dev, inode, 0, PAGE))
    finally:
        shutil.rmtree(top)
    assert mappings_by_pid(found) == {pid: (shared(address, PAGE, 0),)}
    assert [one.fd for one in found[0].open] == [number]


# A caller that may not inspect other processes, or not even see them, gets a note.

SCAN = """
import ctypes, json, os, sys, threading
from whoseblock.processes import Wanted, find_processes
if os.geteuid() == 0 and sys.argv[1] != "0":
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
found = find_processes([Wanted(*map(int, sys.argv[2:6]))])
pids = [process.pid for process in found.processes[0]]
print(json.dumps([pids, found.hidden, found.unlisted]))
"""


def scan_as(user: int, wanted: Wanted, *under: str) -> tuple[list[int], int, bool]:
    numbers = [str(number) for number in (user, *wanted)]
    done = subprocess.run(
        [*under, sys.executable, "-c", SCAN, *numbers],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT / "src")},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    pids, hidden, unlisted = json.loads(done.stdout)
    return pids, hidden, unlisted


def test_without_privileges_others_are_counted(file: Path) -> None:
    need_root()
    # No process may inspect one that changed its user, unless that allows it again.
    own = "os.setgroups([])\nos.setresgid(*3 * [65534])\nos.setresuid(*3 * [65534])\n"
    own += "call('prctl', 4, 1, 0, 0, 0)\nready()"
    with (
        running("map_file(0, PAGE)\n" + own, file) as (mine,),
        running(MAP_FIRST_PAGE, file) as (other, _),
    ):
        pids, hidden, unlisted = scan_as(UNPRIVILEGED, part(file))
        (found,) = users(part(file))
    assert pids == [mine]
    assert hidden > 0
    assert unlisted is not LISTS_ALL
    assert [process.pid for process in found] == sorted([mine, other])


def test_kernel_threads_are_not_hidden(file: Path) -> None:
    need_root()
    _, hidden, _ = scan_as(UNPRIVILEGED, part(file))
    folders = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
    ordinary = 0
    for path in folders:
        with contextlib.suppress(OSError):
            ordinary += "\nVmSize:" in (path / "status").read_text(errors="replace")
    # Others come and go meanwhile.
    assert abs(ordinary - hidden) <= max(10, ordinary // 4)
    assert hidden < len(folders)


@pytest.mark.parametrize("option", ["hidepid=2", "hidepid=1"])
def test_hidepid_is_reported(file: Path, option: str) -> None:
    need_root()
    under = ["unshare", "-m", "sh", "-c"]
    under += [f'mount --make-rprivate / && mount -t proc -o {option} p /proc && exec "$@"', "sh"]
    with running(MAP_FIRST_PAGE, file) as (pid, _):
        pids, hidden, unlisted = scan_as(UNPRIVILEGED, part(file), *under)
        assert (pids, unlisted) == ([], True)
        assert (hidden > 1) == (option == "hidepid=1")
        assert scan_as(0, part(file), *under)[::2] == ([pid], not LISTS_ALL)


def test_a_pid_namespace_lists_only_its_own(file: Path) -> None:
    need_root()
    with running(MAP_FIRST_PAGE, file):
        found = scan_as(0, part(file), "unshare", "-m", "-p", "-f", "--mount-proc")
    assert found == ([], 0, True)


# A filesystem that does not answer delays no other.


@contextlib.contextmanager
def silent_file(tmp_path: Path) -> Iterator[tuple[int, int, Path]]:
    """Provide a process and the inode that it has open on a filesystem that does not answer."""
    image = tmp_path / "image"
    image.write_bytes(bytes(PAGE))
    folder = tmp_path / "silent"
    with failing_device(image, folder, []) as device:
        children = Path("/proc/thread-self/children").read_text().split()
        (server,) = (
            int(pid)
            for pid in children
            if os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        with running("ready(os.fstat(os.open(path, os.O_RDONLY)).st_ino)", device) as (pid, inode):
            os.kill(server, signal.SIGSTOP)
            try:
                # The kernel caches the attributes for a second.
                time.sleep(1.2)
                yield pid, inode, folder
            finally:
                os.kill(server, signal.SIGCONT)


def test_an_unresponsive_mount_is_not_accessed(file: Path, tmp_path: Path) -> None:
    need_root()
    with silent_file(tmp_path) as (silent, inode, _):
        before = find_processes([part(file)])
        # The inode of that number on another filesystem may well be open elsewhere.
        found = find_processes([Wanted(file.stat().st_dev, inode, None, 0)])
    assert silent not in [process.pid for process in found.processes[0]]
    assert found.hidden == before.hidden


def test_an_unresponsive_unmounted_filesystem_is_given_up(file: Path, tmp_path: Path) -> None:
    need_root()
    with silent_file(tmp_path) as (silent, inode, folder), running(HOLD, file) as (pid, _):
        before = find_processes([part(file)])
        run(["umount", "--lazy", folder])
        found = find_processes([Wanted(file.stat().st_dev, inode, None, 0), part(file)])
    others, ours = ([process.pid for process in one] for one in found.processes)
    assert silent not in others
    assert ours == [pid]
    assert found.unanswered > before.unanswered
    # No capability helps there.
    assert found.hidden == before.hidden


def test_a_file_on_a_lazily_unmounted_filesystem(tmp_path: Path) -> None:
    need_root()
    folder = tmp_path / "mounted"
    folder.mkdir()
    run(["mount", "-t", "tmpfs", "none", folder])
    try:
        (folder / "file").write_bytes(bytes(PAGE))
        with running(HOLD, folder / "file") as (pid, number):
            wanted = part(folder / "file")
            run(["umount", "--lazy", folder])
            (found,) = users(wanted)
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=False)
    assert {process.pid: process.open for process in found} == {
        pid: (OpenFile(number, ("O_RDONLY",), 0),)
    }


def test_flags_are_named_as_in_the_kernel(file: Path) -> None:
    names = "O_APPEND O_ASYNC O_DSYNC O_SYNC O_NOATIME O_NONBLOCK O_DIRECTORY O_PATH".split()
    for name in names:
        with contextlib.ExitStack() as stack:
            target = file.parent if name == "O_DIRECTORY" else file
            descriptor = os.open(target, os.O_RDONLY | getattr(os, name))
            stack.callback(os.close, descriptor)
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            expected = [name] if name == "O_PATH" else ["O_RDONLY", name]
            assert list(process_text.flag_names(flags)) == expected
