"""Check what this machine offers: rights, the kernel's reports, programs, extras, the journal.

Nothing is changed: no trace instance is made, no journal is created, no daemon is disturbed.
"""

import ctypes
import errno
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from whoseblock.doctor.base import Check, State
from whoseblock.errors import WhoseblockError
from whoseblock.extras import EXTRAS, check_extra
from whoseblock.fs.registry import DRIVERS, OtherProgram, monitors
from whoseblock.stack.kernel.host import Host

__all__ = ["check_machine"]

_PROGRAM, _RIGHTS, _REPORTS, _TOOLS = "program", "rights", "failures reported", "other programs"
_JOURNAL: Final = "journal"
_AS_ROOT: Final = "run it as root"
#: Bits of CapEff in /proc/PID/status (linux/capability.h), and what they are needed for.
_CAPABILITIES: Final = (
    (2, "CAP_DAC_READ_SEARCH", "files are opened by their inode number"),
    (21, "CAP_SYS_ADMIN", "the kernel tells the owners of a mounted filesystem"),
)
#: Where programs are that are not in the PATH of an ordinary user.
_SYSTEM_FOLDERS: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_LIBFUSE: Final = "libfuse3.so.3"
_TRACEPOINTS: Final = (
    (
        "tracepoint of memory failures",
        ("ras/memory_failure_event", "memory_failure/memory_failure_event"),
        "a kernel with CONFIG_MEMORY_FAILURE",
    ),
    ("tracepoint of failed requests", ("block/block_rq_error",), "Linux 5.18"),
)


#: Programs of all filesystems.
_PROGRAMS: Final = (
    OtherProgram("ddrescue", "gddrescue", "copies a failing disk; lookup reads its map"),
    OtherProgram("smartctl", "smartmontools", "reads what a disk reports; lookup reads its output"),
    OtherProgram("ndctl", "ndctl", "manages persistent memory; lookup reads its lists"),
)


def check_machine(host: Host, version: str, journal: str | None = None) -> Iterator[Check]:
    """Check everything that does not depend on a target.

    ``version`` is that of whoseblock.  ``journal`` is the path or URL of a journal, None for the
    usual one.
    """
    yield from _check_program(version)
    yield from _check_rights(host)
    yield from _check_reports(host)
    yield from _check_tools()
    yield from _check_journal(journal)


# ------------------------------------------------------------------ the program


def _check_program(version: str) -> Iterator[Check]:
    detail = f"{version}, Python {platform.python_version()}, Linux {platform.release()}"
    yield Check(_PROGRAM, "whoseblock", State.WORKS, detail)
    for name, extra in EXTRAS.items():
        detail = f"{extra.package}, for {extra.needed_by}"
        try:
            check_extra(name)
        except WhoseblockError as error:
            yield Check(_PROGRAM, f"extra {name}", State.MISSING, detail, error.hint)
        else:
            yield Check(_PROGRAM, f"extra {name}", State.WORKS, detail)


# ------------------------------------------------------------------ rights


def _check_rights(host: Host) -> Iterator[Check]:
    names = sorted(path.name for path in (host.root / "sys/block").glob("*"))
    devices = [path for name in names if (path := Path("/dev", name)).is_block_device()]
    denied = [path for path in devices if not os.access(path, os.R_OK)]
    if not devices:
        yield Check(_RIGHTS, "reading disks", State.UNKNOWN, "there is no block device in /dev")
    elif denied:
        detail = f"{len(denied)} of {len(devices)} block devices, {denied[0]} among them"
        yield Check(_RIGHTS, "reading disks", State.MISSING, detail, _AS_ROOT)
    else:
        yield Check(_RIGHTS, "reading disks", State.WORKS, f"{len(devices)} block devices")
    status = host.read_text(host.root / "proc/self/status") or ""
    words = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    effective = int(words.get("CapEff", "0"), 16)
    for bit, name, purpose in _CAPABILITIES:
        if effective >> bit & 1:
            yield Check(_RIGHTS, name, State.WORKS, purpose)
        else:
            yield Check(_RIGHTS, name, State.MISSING, f"with it, {purpose}", _AS_ROOT)


# ------------------------------------------------------------------ what the kernel reports


def _check_reports(host: Host) -> Iterator[Check]:
    yield _attempt("kernel log", _open_log)
    for name, events, needed in _TRACEPOINTS:
        yield _check_tracepoint(host.root / "sys/kernel/tracing", name, events, needed)
    lists = len(list((host.root / "sys/block").glob("*/badblocks")))
    detail = f"of {lists} disks" if lists else "no disk has one"
    state = State.WORKS if lists else State.MISSING
    yield Check(_REPORTS, "lists of bad blocks", state, detail)
    yield _attempt("fanotify", _open_fanotify, "Linux 5.16")
    yield from _check_monitors(host)
    yield _check_daemon()


def _attempt(name: str, opened: Callable[[], str], needed: str = "") -> Check:
    """Check what can be opened; ``opened`` does that, and returns a detail."""
    try:
        return Check(_REPORTS, name, State.WORKS, opened())
    except PermissionError as error:
        return Check(_REPORTS, name, State.UNKNOWN, f"{error.strerror}", _AS_ROOT)
    except OSError as error:
        remedy = f"it needs {needed}" if needed and error.errno == errno.EINVAL else ""
        return Check(_REPORTS, name, State.MISSING, error.strerror or str(error), remedy)


def _open_log() -> str:
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return "/dev/kmsg"


def _open_fanotify() -> str:
    from whoseblock.watch.sources.fanotify import FilesystemErrorSource

    FilesystemErrorSource().close()
    return "errors that filesystems detect"


def _check_tracepoint(tracefs: Path, name: str, events: tuple[str, ...], needed: str) -> Check:
    try:
        mounted = (tracefs / "instances").exists()
        found = [event for event in events if (tracefs / "events" / event).exists()]
    except PermissionError:
        return Check(_REPORTS, name, State.UNKNOWN, f"{tracefs} cannot be read", _AS_ROOT)
    if not mounted and tracefs.is_dir() and not os.access(tracefs, os.R_OK):
        return Check(_REPORTS, name, State.UNKNOWN, f"{tracefs} cannot be read", _AS_ROOT)
    if not mounted:
        remedy = f"mount -t tracefs tracefs {tracefs}"
        return Check(_REPORTS, name, State.MISSING, f"no tracefs at {tracefs}", remedy)
    if not found:
        return Check(_REPORTS, name, State.MISSING, events[0], f"it needs {needed}")
    return Check(_REPORTS, name, State.WORKS, found[0])


def _check_monitors(host: Host) -> Iterator[Check]:
    from whoseblock.watch.sources.monitors import MonitorSource
    from whoseblock.watch.sources.mounts import parse_filesystems

    mounted = parse_filesystems(host.read_text(host.root / "proc/self/mountinfo") or "")
    for one in monitors():
        name = f"health monitor of {one.title}"
        filesystems = [each for each in mounted.values() if each.kind in one.kinds]
        if not filesystems:
            detail = f"no {one.title} filesystem is mounted"
            yield Check(_REPORTS, name, State.UNKNOWN, detail, "mount one, and check again")
            continue
        source = MonitorSource(host, one)
        try:
            source.mounts_changed(filesystems)
            state = State.WORKS if source.is_watching else State.MISSING
            yield Check(_REPORTS, name, state, source.health)
        finally:
            source.close()


def _check_daemon() -> Check:
    from whoseblock.watch.status.query import read_status
    from whoseblock.watch.store.state import usual_state_folder

    try:
        status = read_status(usual_state_folder())
    except WhoseblockError as error:
        return Check(_REPORTS, "daemon", State.MISSING, str(error), error.hint)
    if status["state"] != "running":
        detail = f"it is {status['state']}"
        return Check(_REPORTS, "daemon", State.MISSING, detail, "whoseblock watch starts it")
    blind = sorted(name for name, one in status["sources"].items() if not one["watched"])
    if blind:
        detail = f"process {status['pid']} does not watch {', '.join(blind)}"
        return Check(_REPORTS, "daemon", State.LIMITED, detail, "whoseblock status says why")
    return Check(_REPORTS, "daemon", State.WORKS, f"process {status['pid']}")


# ------------------------------------------------------------------ other programs


def _check_tools() -> Iterator[Check]:
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), _SYSTEM_FOLDERS))
    for one in (*(program for driver in DRIVERS for program in driver.programs), *_PROGRAMS):
        if place := shutil.which(one.name, path=search):
            yield Check(_TOOLS, one.name, State.WORKS, f"{place}: {one.purpose}")
        else:
            remedy = f"install the package {one.package}"
            yield Check(_TOOLS, one.name, State.MISSING, one.purpose, remedy)
    yield _check_fuse(search)


def _check_fuse(search: str) -> Check:
    """Check what an emulated device needs, and therefore the demo."""
    name = "FUSE (emulated devices)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        remedy = "modprobe fuse" if not Path("/dev/fuse").exists() else _AS_ROOT
        return Check(_TOOLS, name, State.MISSING, "/dev/fuse cannot be opened", remedy)
    try:
        ctypes.CDLL(_LIBFUSE)
    except OSError:
        return Check(_TOOLS, name, State.MISSING, "libfuse 3", "install the package libfuse3-3")
    if os.geteuid() and shutil.which("fusermount3", path=search) is None:
        return Check(_TOOLS, name, State.MISSING, "fusermount3", "install the package fuse3")
    return Check(_TOOLS, name, State.WORKS, "/dev/fuse and libfuse 3")


# ------------------------------------------------------------------ the journal


def _check_journal(given: str | None) -> Iterator[Check]:
    try:
        check_extra("journal")
    except WhoseblockError as error:
        yield Check(_JOURNAL, "journal", State.MISSING, str(error), error.hint)
        return
    from whoseblock.journal import open_journal
    from whoseblock.journal.location import locate

    try:
        place = locate(given)
        if place.file is not None and not os.path.lexists(place.file):
            yield _check_new_journal(place.file)
            return
        with open_journal(given, write=False) as journal:
            number, _ = journal.count_open()
    except WhoseblockError as error:
        yield Check(_JOURNAL, "journal", State.MISSING, str(error), error.hint)
        return
    detail = f"{place.name}, {number} open failures"
    if place.file is not None and not os.access(place.file, os.W_OK):
        yield Check(_JOURNAL, "journal", State.LIMITED, f"{detail}; it is read-only", _AS_ROOT)
    else:
        yield Check(_JOURNAL, "journal", State.WORKS, detail)


def _check_new_journal(file: Path) -> Check:
    """Check whether a journal could be made."""
    folder = next(parent for parent in file.parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        detail = f"{file} cannot be made: {folder} is not writable"
        remedy = "name another with --journal or $WHOSEBLOCK_JOURNAL"
        return Check(_JOURNAL, "journal", State.MISSING, detail, remedy)
    return Check(_JOURNAL, "journal", State.WORKS, f"{file} will be made when it is needed")
