"""Processes that map parts of files, or have the files open.

One pass over /proc serves all files (proc_pid_maps(5), proc_pid_fdinfo(5)).  A file is identified
by its device and its inode number, never by a path: it may have many, or none, or another one in
the mount namespace of the process.  No process is stopped, attached to, or waited for.

Users without a mapping or a descriptor are not found: the kernel itself (loop devices, swap,
exports), files registered with io_uring, descriptors in transit through a socket.  Neither are
users through overlayfs, as in containers: there it is a file of another device.
"""

import errno
import os
import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import UNSET

from whoseblock.fs.base import Mapping, OpenFile, Process
from whoseblock.process_text import (
    ProcessStat,
    decode,
    flag_names,
    parse_cgroup,
    parse_stat,
    parse_status,
    unit_of,
)

__all__ = ["Found", "Wanted", "find_processes"]

#: The most mappings or descriptors of one process in one file that are reported.
_MOST: Final = 1000
#: The number of attempts for a process that executes another program meanwhile.
_TRIES: Final = 3
#: Seconds that one scan waits in total for filesystems that do not answer.
_PATIENCE: Final = 2.0
#: Up to this number, files are searched one by one.
_FEW: Final = 8

_PIECE: Final = 1 << 16
_MOST_PIECES: Final = 64
#: Longer than the fields before the path in a line of maps, and before the root in mountinfo.
_HEAD: Final = 256

_KCMP_FILES: Final = 2  # linux/kcmp.h
#: The number of kcmp(2), which the C library does not wrap, by machine (asm/unistd.h).
_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}

_MOUNTINFO_LINE: Final = re.compile(rb"^([0-9]+) [0-9]+ ([0-9]+):([0-9]+) ", re.MULTILINE)
#: The kernel reports the inode since 5.14.
_FDINFO: Final = re.compile(
    rb"pos:\t(-?[0-9]+)\nflags:\t([0-7]+)\n(?:mnt_id:\t([0-9]+)\n)?(?:ino:\t([0-9]+)\n)?"
)


class Wanted(NamedTuple):
    """A part of a file: ``length`` bytes from byte ``file_offset`` of an inode.

    ``devices`` are the numbers under which files of its filesystem appear, or the only one: those
    of ``st_dev``, and that of mountinfo.  ``file_offset`` is None for a block of the file that is
    not its data: no process can map it, and only descriptors count.

    ``own_device`` is the ``st_dev`` of the file, where files with the same number differ only by
    it. Only stat(2) returns it; mountinfo and maps lack it.
    """

    devices: int | frozenset[int]
    inode: int
    file_offset: int | None
    length: int
    own_device: int | None = None


class Found(NamedTuple):
    """The processes that use each part, and what may be missing.

    ``processes`` are those of each wanted part, in its order, sorted by pid.  ``hidden`` is the
    number of processes that the kernel did not let this one inspect: those of other users, without
    root.  ``unlisted`` is true if /proc may not list all processes, because it belongs to a pid
    namespace or is mounted with hidepid.  ``omitted`` counts the mappings and descriptors past the
    first thousand that a process has of one part.  ``unanswered`` is the number of processes with
    an open file on a filesystem that did not answer, or failed.  ``unsearched`` is the number of
    processes that were not looked into because the time was over.
    """

    processes: list[tuple[Process, ...]]
    hidden: int
    unlisted: bool
    omitted: int
    unanswered: int = 0
    unsearched: int = 0


def find_processes(
    wanted: Sequence[Wanted], proc: Path = Path("/proc"), seconds: float | None = None
) -> Found:
    """Return the processes that map each part of a file, or have the file open.

    Mappings are clipped to the part.  All descriptors of the inode are returned; their flags have
    the names of open(2), the access mode first and the others by name.  O_LARGEFILE and O_CLOEXEC
    are omitted, because they do not concern the file, and so is the access mode of O_PATH.

    A process that starts or ends meanwhile may be missing.  After ``seconds`` no further process is
    looked into; those that were started last come last.  Raises `OSError` if ``proc`` cannot be
    listed.
    """
    scan = _Scan(wanted, proc)
    if wanted:
        scan.run(None if seconds is None else time.monotonic() + seconds)
    found = [tuple(users) for users in scan.users]
    unlisted = bool(wanted) and not scan.kernel_seen
    return Found(found, scan.hidden, unlisted, scan.omitted, scan.unanswered, scan.unsearched)


class _File:
    # The parts of one file that are wanted, each with its place in the question.

    def __init__(self, device: int, inode: int) -> None:
        #: As a line of maps has them.
        self.device_text = b" %02x:%02x " % (os.major(device), os.minor(device))
        self.inode_text = b"%d" % inode
        self.text = self.device_text + self.inode_text + b" "
        self.places: list[int] = []
        #: The places for which stat(2) must have another device, by that.
        self.others: dict[int, int] = {}
        #: Nothing is wanted outside of these.
        self.first = self.end = 0
        self._parts: list[tuple[int, int, int]] = []
        self._starts: list[int] = []
        self._longest = 0

    def add(self, place: int, part: Wanted) -> None:
        self.places.append(place)
        if part.file_offset is not None:
            self._parts.append((part.file_offset, part.file_offset + part.length, place))
            self._longest = max(self._longest, part.length)

    def sort(self) -> None:
        self._parts.sort()
        self._starts = [start for start, _, _ in self._parts]
        self.first = self._starts[0] if self._parts else 0
        self.end = max((end for _, end, _ in self._parts), default=0)

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        # Each part that touches these bytes of the file: its place, and where the two overlap.
        first = bisect_left(self._starts, start - self._longest)
        for own_start, own_end, place in self._parts[first : bisect_left(self._starts, end)]:
            if own_start < end and start < own_end:
                yield place, max(start, own_start), min(end, own_end)


@dataclass
class _Seen:
    # What one process has of the files, by place in the question and by file.
    mappings: dict[int, list[Mapping]] = field(default_factory=dict)
    open: dict[_File, set[OpenFile]] = field(default_factory=dict)
    omitted: int = 0
    refused: bool = False
    unanswered: bool = False
    mounts_read: bool = False


class _Scan:
    # One pass over all processes.

    def __init__(self, wanted: Sequence[Wanted], proc: Path) -> None:
        self.proc = os.fspath(proc)
        self.users: list[list[Process]] = [[] for _ in wanted]
        self.hidden = 0
        self.omitted = 0
        self.unanswered = 0
        self.unsearched = 0
        self.kernel_seen = False
        self._files: dict[tuple[int, int], _File] = {}
        for place, part in enumerate(wanted):
            devices = {part.devices} if isinstance(part.devices, int) else set(part.devices)
            own = part.own_device
            for device in devices if own is None else {*devices, own}:
                file = self._files.setdefault((device, part.inode), _File(device, part.inode))
                file.add(place, part)
                if own not in (None, device):
                    file.others[place] = own
        #: By device and inode as maps has them.
        self._by_text: dict[bytes, dict[bytes, _File]] = {}
        for file in self._files.values():
            file.sort()
            self._by_text.setdefault(file.device_text, {})[file.inode_text] = file
        self._devices = {device for device, _ in self._files}
        self._inodes = {b"%d" % inode for _, inode in self._files}
        #: The device of every mount that was met, by its number.
        self._mounts: dict[bytes, int] = {}
        self._patience = _PATIENCE
        self._silent: set[bytes | None] = set()
        self._same_table: Callable[[int, int], bool] | None = None
        self._boot_time: int | None = None

    def run(self, deadline: float | None = None) -> None:
        with os.scandir(self.proc) as entries:
            pids = sorted(int(entry.name) for entry in entries if entry.name.isdecimal())
        for number, pid in enumerate(pids):
            if deadline is not None and time.monotonic() > deadline:
                self.unsearched = len(pids) - number
                return
            try:
                self._process(pid)
            except (FileNotFoundError, ProcessLookupError):
                pass
            except PermissionError:
                self.hidden += 1
            except OSError:
                self.unanswered += 1

    def _process(self, pid: int) -> None:
        # This descriptor stays that of the process, even if its number is reused.
        folder = os.open(f"{self.proc}/{pid}", os.O_PATH | os.O_DIRECTORY)
        try:
            stat = _read_stat(folder)
            for _ in range(_TRIES):
                if stat.kernel or stat.ended:
                    self.kernel_seen |= stat.kernel
                    return
                seen = self._look(folder, pid, stat)
                if not seen.mappings and not seen.open:
                    break
                process = self._describe(folder, pid, stat)
                before, stat = stat, _read_stat(folder)
                # Otherwise the files of one program would be reported for the next one.
                if stat.is_same_program(before):
                    break
        finally:
            os.close(folder)
        self.hidden += seen.refused
        self.unanswered += seen.unanswered
        if (seen.mappings or seen.open) and not stat.ended:
            self.omitted += seen.omitted
            self._note(process, seen)

    def _note(self, process: Process, seen: _Seen) -> None:
        found_at: dict[int, set[OpenFile]] = {}
        for file, found in seen.open.items():
            for place in file.places:
                if place in file.others:
                    continue
                # A file may appear under several devices.
                found_at[place] = found_at.get(place, set()) | found
        open_at = {
            place: tuple(sorted(found, key=lambda one: (one.fd, one.flags, one.offset)))
            for place, found in found_at.items()
        }
        for place in seen.mappings.keys() | open_at.keys():
            self.users[place].append(
                Process(
                    process.pid,
                    process.start_time,
                    process.started,
                    process.command,
                    process.uid,
                    tuple(seen.mappings.get(place, ())),
                    open_at.get(place, ()),
                    process.namespace_pid,
                    process.cgroup,
                    process.unit,
                )
            )

    def _describe(self, folder: int, pid: int, stat: ProcessStat) -> Process:
        if self._boot_time is None:
            self._boot_time = _boot_time(self.proc)
        started = self._boot_time + stat.start_time // os.sysconf("SC_CLK_TCK")
        uid, namespace_pid = parse_status(_read(folder, "status"))
        cgroup = parse_cgroup(_read(folder, "cgroup"))
        return Process(
            pid,
            stat.start_time,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            decode(_read(folder, "comm").removesuffix(b"\n")),
            uid,
            namespace_pid=namespace_pid,
            cgroup=cgroup,
            unit=UNSET if cgroup is UNSET else unit_of(cgroup),
        )

    def _look(self, folder: int, pid: int, stat: ProcessStat) -> _Seen:
        seen = _Seen()
        tasks = [] if stat.zombie else [""]
        try:
            if stat.threads > 1:
                names = _names(folder, "task")
                tasks += [f"task/{name}/" for name in names if name != str(pid)]
            # Descriptors first: many programs close theirs as soon as they have their mapping.
            for task in self._with_own_tables(pid, tasks):
                self._descriptors(folder, task, seen)
            # They all share their memory, but one that has just ended shows nothing of it.
            any(self._maps(folder, task, seen) for task in tasks)
        except (FileNotFoundError, ProcessLookupError):
            raise
        except PermissionError:
            # To other users than root, the kernel also refuses processes that are just ending.
            seen.refused = _read_stat(folder).has_memory
        except OSError:
            seen.unanswered = True
        return seen

    def _with_own_tables(self, pid: int, tasks: list[str]) -> Iterator[str]:
        # Threads share their descriptors too, unless they ask for a table of their own.
        if len(tasks) == 1:
            yield from tasks
            return
        if self._same_table is None:
            self._same_table = _table_comparer(self.proc)
        tables: list[int] = []
        for task in tasks:
            number = int(task.split("/")[1]) if task else pid
            # With many tables, reading some twice is faster than comparing each with each.
            if not any(self._same_table(number, table) for table in tables[-_FEW:]):
                tables.append(number)
                yield task

    def _maps(self, folder: int, task: str, seen: _Seen) -> bool:
        # Return whether the task has mappings.
        some = False
        with suppress(FileNotFoundError, ProcessLookupError):
            for lines in _lines(folder, f"{task}maps"):
                some = True
                for file in self._mentioned(lines):
                    self._mappings(lines, file, seen, folder)
        return some

    def _mentioned(self, lines: bytes) -> list[_File]:
        # Return the files that may be mapped here: a path may look like a mapping.
        if len(self._files) <= _FEW:
            return [file for file in self._files.values() if file.text in lines]
        mentioned: set[_File] = set()
        for device, files in self._by_text.items():
            inodes = {piece.partition(b" ")[0] for piece in lines.split(device)[1:]}
            mentioned.update(files[inode] for inode in inodes if inode in files)
        return list(mentioned)

    def _mappings(self, lines: bytes, file: _File, seen: _Seen, folder: int) -> None:
        for piece in lines.split(file.text)[:-1]:
            begin = piece.rfind(b"\n") + 1
            addresses, _, rest = piece[begin:].partition(b" ")
            permissions, _, offset = rest.partition(b" ")
            # In a path, more comes before it: more fields, or what it has just been split from.
            if not begin or b" " in offset:
                continue
            start = int(offset, 16)
            if start >= file.end:
                continue
            low, _, high = addresses.partition(b"-")
            address = int(low, 16)
            end = start + int(high, 16) - address
            if end <= file.first:
                continue
            device: int | None = None
            for place, first, stop in file.within(start, end):
                if place in file.others:
                    if device is None:
                        device = _device_at(folder, f"map_files/{os.fsdecode(addresses)}")
                    if device != file.others[place]:
                        continue
                mappings = seen.mappings.setdefault(place, [])
                if len(mappings) == _MOST:
                    seen.omitted += 1
                    continue
                mappings.append(
                    Mapping(
                        address + first - start,
                        stop - first,
                        first,
                        shared=b"s" in permissions,
                        readable=b"r" in permissions,
                        writable=b"w" in permissions,
                        executable=b"x" in permissions,
                    )
                )

    def _descriptors(self, folder: int, task: str, seen: _Seen) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            for name in _names(folder, f"{task}fd"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    self._descriptor(folder, task, name, seen)

    def _descriptor(self, folder: int, task: str, name: str, seen: _Seen) -> None:
        # Sockets, pipes and the like have no path.  One that is too long may be a file's.
        try:
            if not os.readlink(f"{task}fd/{name}", dir_fd=folder).startswith("/"):
                return
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
        info = _FDINFO.match(_read(folder, f"{task}fdinfo/{name}"))
        if info is None or (info[4] is not None and info[4] not in self._inodes):
            return
        file = self._file_of(folder, task, name, info, seen)
        if file is not None:
            found = seen.open.setdefault(file, set())
            one = OpenFile(int(name), flag_names(int(info[2], 8)), int(info[1]))
            if len(found) < _MOST:
                found.add(one)
            else:
                seen.omitted += one not in found

    def _file_of(
        self, folder: int, task: str, name: str, info: re.Match[bytes], seen: _Seen
    ) -> _File | None:
        # stat(2) has the device, but a dead server or a malicious FUSE daemon never answers it.
        link = f"{task}fd/{name}"
        device = self._device_of(folder, task, info[3], seen)
        if device is None:
            return self._file_in_time(folder, link, info[3], seen)
        expected = self._files.get((device, int(info[4]))) if info[4] else None
        if device not in self._devices or (info[4] and expected is None):
            return None
        try:
            return self._file_at(folder, link)
        except (FileNotFoundError, ProcessLookupError):
            raise
        except OSError:
            # A filesystem that shut down after an error answers no stat(2).
            return expected

    def _device_of(self, folder: int, task: str, mount: bytes | None, seen: _Seen) -> int | None:
        # None for a mount that the process does not see: of another namespace, or unmounted lazily.
        if mount is None:
            return None
        if mount not in self._mounts and not seen.mounts_read:
            seen.mounts_read = True
            with suppress(OSError):
                for lines in _lines(folder, f"{task}mountinfo"):
                    for number, major, minor in _MOUNTINFO_LINE.findall(lines):
                        self._mounts[number] = os.makedev(int(major), int(minor))
        return self._mounts.get(mount)

    def _file_at(self, folder: int, link: str) -> _File | None:
        status = os.stat(link, dir_fd=folder)
        return self._files.get((status.st_dev, status.st_ino))

    def _file_in_time(
        self, folder: int, link: str, mount: bytes | None, seen: _Seen
    ) -> _File | None:
        import threading

        answers: list[_File | None] = []

        def ask() -> None:
            with suppress(FileNotFoundError, ProcessLookupError):
                try:
                    answers.append(self._file_at(folder, link))
                except OSError:
                    seen.unanswered = True

        if self._patience > 0 and mount not in self._silent:
            thread = threading.Thread(target=ask, daemon=True)
            asked = time.monotonic()
            thread.start()
            thread.join(_PATIENCE / 4)
            if not thread.is_alive():
                return answers[0] if answers else None
            self._patience -= time.monotonic() - asked
            self._silent.add(mount)
        seen.unanswered = True
        return None


def _device_at(folder: int, link: str) -> int:
    # The ``st_dev`` of the file of a mapping, 0 if it is gone by now.
    try:
        return os.stat(link, dir_fd=folder).st_dev
    except FileNotFoundError:
        return 0


def _table_comparer(proc: str) -> Callable[[int, int], bool]:
    # Return a function: whether two tasks are known to share their table of descriptors.
    number = _KCMP.get(os.uname().machine)
    try:
        ours = str(Path(proc, "self").readlink()) == str(os.getpid())
    except OSError:
        ours = False
    if number is None or not ours or sys.maxsize < 1 << 32:
        return lambda _one, _other: False
    import ctypes

    call = ctypes.CDLL(None).syscall
    call.restype = ctypes.c_long
    call.argtypes = [ctypes.c_long] * 6
    return lambda one, other: call(number, one, other, _KCMP_FILES, 0, 0) == 0


def _names(folder: int, name: str) -> Iterator[str]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                yield entry.name
    finally:
        os.close(descriptor)


def _read(folder: int, name: str) -> bytes:
    # The kernel returns these files in one piece if the buffer is large enough.
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        pieces = [os.read(descriptor, _PIECE)]
        while len(pieces[-1]) == _PIECE and len(pieces) < _MOST_PIECES:
            pieces.append(os.read(descriptor, _PIECE))
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _lines(folder: int, name: str) -> Iterator[bytes]:
    # Many whole lines at a time, each with a newline before it.  Of one that is very long, and a
    # path may have millions of bytes, something is left out in the middle.
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        pieces = [b"\n"]
        while piece := os.read(descriptor, _PIECE):
            pieces.append(piece)
            if len(pieces) == _MOST_PIECES:
                whole, _, rest = b"".join(pieces).rpartition(b"\n")
                yield whole
                pieces = [b"\n", rest[:_HEAD]]
        if len(pieces) > 1:
            yield b"".join(pieces)
    finally:
        os.close(descriptor)


def _read_stat(folder: int) -> ProcessStat:
    return parse_stat(_read(folder, "stat"))


def _boot_time(proc: str) -> int:
    # In seconds since the epoch.
    text = Path(proc, "stat").read_bytes()
    return int(text.partition(b"\nbtime ")[2].split(maxsplit=1)[0])
