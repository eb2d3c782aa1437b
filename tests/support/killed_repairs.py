"""A filesystem on failing media, runs of whoseblock on it that are killed, and what must hold then.

`Ground` is an XFS that stays mounted for many runs; `Victim` starts them
(`tests.support.killable_program`).
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.support.emulated_device import Emulated, emulated
from tests.support.kernel_oracle import getfsmap
from tests.support.mounts import mounted, own_mount_namespace, small_filesystem
from tests.support.tools import CHECKOUT, need_loop_mounts, sees, xfsprogs
from tests.support.truth import Row
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.journal import Plan, open_journal
from whoseblock.ranges import ByteRange, merge
from whoseblock.respond.syscalls import sync_filesystem

__all__ = ["BLOCK", "SECTOR", "Ground", "Ran", "Victim", "check_repair", "ground", "victim"]

BLOCK = 4096
SECTOR = 512
_PATIENCE_S = 10.0
_SIZE = 64 * MIB
_FITHAW = 0xC0045878  # linux/fs.h


class Ran(NamedTuple):
    """The outcome of a run: its exit code, or -9, and the boundaries that it passed."""

    pid: int
    code: int
    seconds: float
    trace: tuple[str, ...]
    output: str

    @property
    def killed(self) -> bool:
        return self.code == -9

    def begun(self) -> list[str]:
        """Return the names of the boundaries that were reached."""
        return [line.split()[2].rstrip(":") for line in self.trace if line[0] == "<"]

    def moments(self) -> list[tuple[int, bool]]:
        """Return the moments between boundaries: the boundary to die at, and whether after it.

        Where one ends and the next begins, they are seen from either side in turn; at the borders
        of one within another nothing happens.
        """
        found = [(1, False)]
        for last, line in pairwise(self.trace):
            if (last[0], line[0]) == (">", "<"):
                after = len(found) % 2 == 0
                found.append((int((last if after else line).split()[1]), after))
        return [*found, (int(self.trace[-1].split()[1]), True)]


@dataclass
class Victim:
    """The program that runs whoseblock and kills it."""

    program: "subprocess.Popen[str]"
    folder: Path
    runs: int = 0
    kills: int = 0

    @property
    def has_groups(self) -> bool:
        return control_groups() is not None

    def run(  # noqa: PLR0913 - the moment, and who dies
        self,
        *arguments: str | Path,
        at: int | None = None,
        after: bool = False,
        delay: float | None = None,
        guard: bool = False,
        both: bool = False,
        group: bool = False,
    ) -> Ran:
        """Run it, and kill it at a boundary, or its ``guard``, or ``both``, or after a while.

        ``group`` kills it with all processes of its control group.
        """
        self.runs += 1
        trace, output = self.folder / f"trace{self.runs}", self.folder / f"output{self.runs}"
        order = {
            "arguments": [str(word) for word in arguments],
            "trace": str(trace),
            "output": str(output),
            "at": at,
            "after": after,
            "delay": delay,
            "guard": guard,
            "both": both,
            "group": self._group() if group else None,
        }
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(order) + "\n")
        self.program.stdin.flush()
        told = json.loads(self.program.stdout.readline())
        # Killed at once, it made neither.
        said, passed = (file.read_text() if file.exists() else "" for file in (output, trace))
        ran = Ran(told["pid"], told["code"], told["seconds"], tuple(passed.splitlines()), said)
        self.kills += ran.killed
        return ran

    def _group(self) -> str:
        folder = control_groups()
        assert folder is not None
        return str(folder / f"whoseblock-{self.program.pid}-{self.runs}")


def control_groups() -> Path | None:
    """Find the mount of cgroup2 in which groups can be made and killed; None if there is none."""
    for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK) and os.geteuid() == 0:
            return Path(place)
    return None


@contextlib.contextmanager
def victim(folder: Path) -> Iterator[Victim]:
    """Start the program; it ends with the block, in any case."""
    folder.mkdir()
    # It is to see what is mounted later.
    own_mount_namespace()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.killable_program"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            yield Victim(program, folder)
        finally:
            program.kill()


def guards_of(pid: int) -> list[int]:
    """Find the guards of a process, whether it lives or not."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                program = [
                    at for at, word in enumerate(words) if word.endswith(b"/freeze_guard.py")
                ]
                if program and words[program[0] + 3] == str(pid).encode():
                    found.append(int(name))
    return found


def wait_for_no_guard(pid: int) -> None:
    """Wait until the guard of a run that was ended has done what it is for, and has gone."""
    deadline = time.monotonic() + _PATIENCE_S
    while guards_of(pid):
        assert time.monotonic() < deadline, "the guard is still there"
        time.sleep(0.002)


def thaw(root: Path) -> bool:
    """Thaw a filesystem; False if it was not frozen."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, _FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(folder)
    return True


def check_not_frozen(root: Path) -> None:
    """See that a filesystem is not frozen, and takes new files; it is thawed in any case."""
    assert not thaw(root), "the filesystem was left frozen"
    begun = time.monotonic()
    probe = root / "probe"
    file = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(file, b"not frozen")
        os.fsync(file)
    finally:
        os.close(file)
    os.unlink(probe)
    assert time.monotonic() - begun < _PATIENCE_S


def check_repair(image: Path) -> None:
    """See that xfs_repair finds nothing wrong with a filesystem that is not mounted."""
    done = subprocess.run(
        [xfsprogs("xfs_repair"), "-n", "-f", image], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # It reports a log that is not clean, and does not read its content.
    assert "ALERT" not in done.stderr, done.stderr


def read_direct(path: Path) -> tuple[bytes, list[ByteRange]]:
    """Read a file past the page cache; give its bytes, and which of its sectors give EIO."""
    size = path.stat().st_size
    data, lost = bytearray(size), []
    file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOATIME)
    try:
        with mmap.mmap(-1, max(-(-size // BLOCK), 1) * BLOCK) as buffer, memoryview(buffer) as view:
            todo = [(0, len(view))]
            while todo:
                at, length = todo.pop()
                try:
                    with view[:length] as part:
                        count = os.preadv(file, [part], at)
                        data[at : at + count] = part[:count]
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    step = BLOCK if length > BLOCK else SECTOR
                    if length == SECTOR:
                        lost.append(ByteRange(at, min(SECTOR, size - at)))
                    else:
                        todo += [(start, step) for start in range(at, min(at + length, size), step)]
    finally:
        os.close(file)
    return bytes(data[:size]), merge(lost)


@dataclass
class Ground:
    """A mounted filesystem on a failing device, copies of its files, and a journal elsewhere."""

    served: Emulated
    loop: Path
    image: Path
    folder: Path
    #: The probability that a file besides the first has a capability.
    capable: float = 0.0
    _mount: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    root: Path = Path()

    @property
    def copies(self) -> Path:
        return self.folder / "copies"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite"

    def mount(self) -> None:
        self.root = Path(os.fsdecode(self._mount.enter_context(mounted(self.loop, loop=False))))

    def unmount(self) -> None:
        """Unmount the filesystem, and wait until the kernel has let go of the device, too.

        Copies of the mount that a killed run made for itself end a moment later.
        """
        self._mount.close()
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                os.close(os.open(self.loop, os.O_RDONLY | os.O_EXCL))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                assert time.monotonic() < deadline, "it is still mounted"
                time.sleep(0.01)
            else:
                return

    def check_repair(self) -> None:
        """See what xfs_repair says, and mount the filesystem again."""
        self.unmount()
        check_repair(self.image)
        self.mount()

    def rows(self) -> list[Row]:
        return getfsmap(os.fsencode(self.root))

    def place_of(self, name: str, offset: int) -> int:
        """Ask the kernel at which byte of the device a byte of a file is."""
        inode = (self.root / name).stat().st_ino
        (row,) = (
            row
            for row in self.rows()
            if row.inode == inode
            and not row.attr
            and row.offset <= offset < row.offset + row.length
        )
        return row.start + offset - row.offset

    def free_place(self, blocks: int) -> int:
        """Find free blocks at the end of the largest free range, which are allocated last."""
        free = [row for row in self.rows() if row.kind == "free"]
        largest = max(free, key=lambda row: row.length)
        return largest.end - blocks * BLOCK

    def fill(self, name: str, content: bytes) -> None:
        """Make a file that is on the device when this returns, and a copy of it elsewhere."""
        for path in (self.root / name, self.copies / name):
            path.parent.mkdir(exist_ok=True, parents=True)
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        self.keep_times(name)

    def keep_times(self, name: str) -> None:
        """Set the times of a copy to those of its file, as backups do."""
        status = (self.root / name).stat()
        os.utime(self.copies / name, ns=(status.st_atime_ns, status.st_mtime_ns))

    def sync(self) -> None:
        """Sync the filesystem to the device."""
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        sync_filesystem(folder)
        os.close(folder)

    def plans(self, after: int = 0) -> list[Plan]:
        """Return the plans of the journal with greater numbers; none if there is no journal yet."""
        if not self.last_plan() > after:
            return []
        with open_journal(str(self.journal), write=False) as journal:
            return [journal.plan(number) for number in range(after + 1, self.last_plan() + 1)]

    def is_closed(self, plan: Plan) -> bool:
        """Return whether all failures of a plan are closed; here they are closed together."""
        with open_journal(str(self.journal), write=False) as journal:
            closed = {journal.history(one).failure.closed is not None for one in plan.failures}
        (answer,) = closed
        return answer

    def last_plan(self) -> int:
        """Ask the database itself for the number of the newest plan, 0 if there is none."""
        if not self.journal.exists():
            return 0
        with contextlib.closing(sqlite3.connect(self.journal)) as database:
            if not database.execute("SELECT 1 FROM sqlite_schema WHERE name='plans'").fetchone():
                return 0
            (number,) = database.execute("SELECT max(id) FROM plans").fetchone()
        return int(number or 0)

    def unfinished(self) -> Sequence[Plan]:
        with open_journal(str(self.journal)) as journal:
            return journal.unfinished()

    def check_after(self, ran: Ran) -> None:
        """See that nothing of a run is left, and that the filesystem is in use."""
        try:
            wait_for_no_guard(ran.pid)
        finally:
            check_not_frozen(self.root)


@contextlib.contextmanager
def ground(*, exchange: bool = True) -> Iterator[Ground]:
    """Make a filesystem on failing media and mount it; nothing of it is left, in any case."""
    need_loop_mounts()
    # In memory: what is waited for is the kernel, not a disk that has nothing to do with it.
    with small_filesystem("tmpfs", Path(), 4 * _SIZE) as folder:
        yield from _ground_in(folder, exchange=exchange)


def _ground_in(folder: Path, *, exchange: bool) -> Iterator[Ground]:
    option = f"exchange={exchange:d}"
    parent = exchange and sees("-n", "parent=1")
    more = ("-i", option) if sees("-i", option) else ()
    geometry = Geometry("killed", size=_SIZE, parent=parent, more=more)
    image = make_image(folder / "disk", geometry)
    (folder / "copies").mkdir()
    with emulated(image, folder / "at") as served, served.loop() as loop:
        made = Ground(served, loop, image, folder)
        with contextlib.closing(_Unmounting(made)):
            made.mount()
            yield made


class _Unmounting:
    """Thaws and unmounts whatever a test has left."""

    def __init__(self, made: Ground) -> None:
        self._made = made

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            thaw(self._made.root)
        self._made.unmount()
