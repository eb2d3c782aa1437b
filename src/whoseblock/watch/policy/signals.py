"""Send the signal of a rule to the processes that use the failed bytes."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import FileOwner, Owner, Process
from whoseblock.fs.opening import open_mounted
from whoseblock.media.mounts import find_mounts
from whoseblock.processes import Wanted, find_processes
from whoseblock.respond.notify import SENT, send_signal, signal_number
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.policy.rules import Rule, Users

__all__ = ["send_signals", "signal_recipients"]


def signal_recipients(rule: Rule, rows: Iterable[Owner]) -> dict[str, Any]:
    """Return the processes that get the signal of a rule, and what they use, as parameters."""
    targets: dict[tuple[int, int], str] = {}
    files: dict[tuple[str, int, int, int | None, int], None] = {}
    for row in rows:
        if not isinstance(row, FileOwner) or not isinstance(row.via, tuple):
            continue
        users = row.processes if isinstance(row.processes, tuple) else ()
        mine = [process for process in users if _uses(process, rule.signal_to)]
        targets |= {(process.pid, process.start_time): process.command for process in mine}
        if mine:
            # A block of the file that is not data cannot be mapped.
            offset, length = row.lost or (None, row.length)
            layer, (subvolume, inode) = row.via[-1].layer, row.file
            files[layer, subvolume, inode, offset if row.what == "data" else None, length] = None
    return {
        "signal": rule.signal,
        "signal-to": rule.signal_to,
        "processes": [[*process, command] for process, command in sorted(targets.items())],
        "files": [list(file) for file in files],
    }


def _uses(process: Process, how: Users) -> bool:
    mapped = bool(process.mappings) and how in ("mapped", "all")
    return mapped or (bool(process.open) and how in ("open", "all"))


def send_signals(how: Mapping[str, Any], lock: Path) -> str:
    """Send the signal to recipients that still use the files; return who got it.

    Time has passed since they were found: a program of the policy may have run for an hour. A
    process that has the daemon's ``lock`` open belongs to the daemon and never gets the signal.
    """
    number = signal_number(how["signal"])
    users = {
        (process.pid, process.start_time)
        for found in find_processes(list(_search_terms(how["files"]))).processes
        for process in found
        if _uses(process, how["signal-to"])
    }
    outcomes: dict[str, list[str]] = {SENT: []}
    for pid, start, command in how["processes"]:
        if (pid, start) not in users:
            outcome = "it no longer uses the file"
        else:
            outcome = _why_exempt(pid, lock) or send_signal(number, pid, start)
        outcomes.setdefault(outcome, []).append(f"{command}[{pid}]")
    sent = outcomes.pop(SENT)
    others = (f"not to {', '.join(names)}: {why}" for why, names in outcomes.items())
    return "; ".join((f"sent to {', '.join(sent) or 'no process'}", *others))


def _search_terms(files: Iterable[tuple[str, int, int, int | None, int]]) -> Iterable[Wanted]:
    """Yield what to search for, with the present device numbers of the filesystems."""
    host = Host()
    for layer, subvolume, inode, offset, length in files:
        device = _device_number(host, layer)
        if device is None:
            continue
        own = _subvolume_device(device, subvolume) if subvolume else None
        if own is None and subvolume:
            # Without it, files of other subvolumes with the same number would count.
            continue
        # A filesystem of several devices has another number in the mount table.
        mounts = (mount.device for mount in find_mounts(device)[1])
        yield Wanted(frozenset((device, *mounts)), inode, offset, length, own)


def _subvolume_device(device: int, subvolume: int) -> int | None:
    """Return the ``st_dev`` of the files of a subvolume, None if it is not known."""
    with suppress(WhoseblockError, OSError):
        volume = open_mounted(device)
        if volume is not None:
            with volume:
                return volume.subvolume_device(subvolume)
    return None


def _device_number(host: Host, layer: str) -> int | None:
    """Return the number of the device of a layer, None if there is none."""
    folder = host.find_device_folder(host.find_device_by_layer(layer))
    if folder is None:
        return None
    major, colon, minor = (host.read_text(folder / "dev") or "").partition(":")
    return os.makedev(int(major), int(minor)) if colon else None


def _why_exempt(pid: int, lock: Path) -> str:
    """Return why a process may not get a signal of the daemon, "" if it may."""
    wanted = lock.resolve()
    try:
        with os.scandir(f"/proc/{pid}/fd") as names:
            # Only the link is read, so no filesystem can block this.
            ours = any(_read_link(Path(name)) == wanted for name in names)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError as error:
        return f"cannot determine whether it belongs to the daemon: {error.strerror}"
    return "it belongs to the daemon" if ours else ""


def _read_link(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None
