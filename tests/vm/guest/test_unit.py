"""The unit as it is shipped, under systemd: what it forbids must not be what the daemon needs."""

import json
import mmap
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from signal import SIGSTOP

import pytest
from tests.support.emulated_device import Emulated, need_fuse
from tests.support.systemd_unit import SOCKET
from tests.support.tools import CHECKOUT
from tests.support.watch_daemon import histories, is_idle
from tests.vm.guest.asking import Json, blocks_of, rows
from tests.vm.guest.machine import Undo, make_xfs, modprobe, run, wait_for
from tests.vm.guest.watching import answer_of

from whoseblock.journal import History
from whoseblock.journal.records import FINAL, Step
from whoseblock.ranges import ByteRange

#: The first process of this machine, for tests.vm.machine.
INIT = "systemd"

BLOCK = 4096
SCM_CREDENTIALS = 2  # bits/socket.h
KOBJECT_UEVENT = 15  # linux/netlink.h
UNIT = "whoseblock-watch.service"
WHOSEBLOCK = Path(sys.executable).with_name("whoseblock")
UNITS = Path("/etc/systemd/system")
ROOT = Path("/srv/data")
GOOD = Path("/srv/good")
JOURNAL = Path("/var/lib/whoseblock/journal.sqlite")
#: Everything that systemd and a shell treat as special.
POLICY = Path("/run/a policy; for $HOME 100%i \"\\'é.toml")
TOLD = Path("/run/told")
#: As the guide has it.
WRITABLE = "/home /opt /root /run /srv /tmp /var/lib /var/tmp /dev/shm".split()
READ_ONLY = "/boot /efi /etc /proc/sys/vm /sys/fs/cgroup /sys/kernel/mm /usr /usr/local".split()
PROGRAM = f"""#!/bin/sh
for place in {" ".join(WRITABLE + READ_ONLY)}; do
    true >$place/by-exec && echo $place
done >{TOLD}.new 2>/dev/null
mv {TOLD}.new {TOLD}.places
systemctl start --no-block page@$WHOSEBLOCK_FAILURE
cat >{TOLD}.new
mv {TOLD}.new {TOLD}
"""


def make_disk(undo: Undo) -> Emulated:
    """Make a filesystem on a device that fails where the test says, and heals when written."""
    need_fuse()
    modprobe("loop", "xfs")
    image, folder = Path("/run/image"), Path("/run/served")
    with image.open("wb") as file:
        file.truncate(400 << 20)
    make_xfs(str(image))
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "whoseblock", "emulate", image, folder, "--in-place"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
    )
    undo.callback(server.kill)
    undo.then("umount", "-l", folder)
    assert server.stdout is not None
    assert server.stdout.readline()
    served = Emulated(folder, server)
    device = run(["losetup", "--direct-io=on", "--find", "--show", served.device]).decode().strip()
    undo.then("losetup", "-d", device)
    ROOT.mkdir(parents=True)
    run(["mount", device, ROOT])
    undo.then("umount", ROOT)
    return served


def state_of(name: str) -> str:
    return run(["systemctl", "show", "--value", "-p", name, UNIT]).decode().strip()


def entry_of(lost: ByteRange) -> History:
    """Wait until a failed sector has owners, and its plan is carried out."""

    def known() -> list[History]:
        if not is_idle(JOURNAL.with_name("watch")):
            return []
        found = [
            one
            for one in histories(JOURNAL)
            if one.failure.start <= lost.start < one.failure.start + one.failure.length
        ]
        return [one for one in found if one.findings and finished(one)]

    return wait_for(known, 600)[0]


def finished(entry: History) -> dict[str, str]:
    """Return the final states of the steps, none if one is not final."""
    steps: list[Step] = [step for plan in entry.plans for step in plan.steps]
    if not steps or any(step.state not in FINAL for step in steps):
        return {}
    return {step.kind: str(step.state) for step in steps}


def fail(served: Emulated, path: Path, block: int) -> ByteRange:
    """Make a sector of a file fail, and read it past the page cache."""
    run(["sync", "-f", path])
    Path("/proc/sys/vm/drop_caches").write_text("3")
    offset = block * BLOCK
    (extent,) = blocks_of(path, path.stat().st_ino)
    lost = ByteRange(extent.start + offset - extent.offset, 512)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        served.add(lost)
        with pytest.raises(OSError, match="Input/output error"):
            os.preadv(file, [mmap.mmap(-1, BLOCK)], offset)
    finally:
        os.close(file)
    return lost


def install() -> int:
    """Install and start the service with a policy; return its process."""
    program = Path("/run/page")
    program.write_text(PROGRAM)
    program.chmod(0o755)
    for place in (*WRITABLE, *READ_ONLY):
        if not place.startswith(("/proc", "/sys")):
            Path(place).mkdir(parents=True, exist_ok=True)
    (UNITS / "page@.service").write_text(
        f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo %i >{TOLD}.page'\n"
    )
    POLICY.write_text(
        f"""
        [[rule]]
        name = "data"
        filesystem = "{ROOT}"
        owner = "file"
        path = "{ROOT}/db/*.bin"
        respond = "restore"
        restore-from = "{GOOD}"
        exec = ["{program}"]
        """
    )
    # Root here need not own the checkout, so it is printed.
    options: list[str | Path] = ["--policy", POLICY, "--interval", "5", "--install-unit", "-"]
    (UNITS / UNIT).write_bytes(run([WHOSEBLOCK, "watch", *options]))
    shutil.copy(SOCKET, UNITS)
    drop_in = UNITS / f"{UNIT}.d/impatient.conf"
    drop_in.parent.mkdir()
    # A process that stands still aborts no sooner.
    drop_in.write_text("[Service]\nTimeoutAbortSec=1s\n")
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "start", UNIT])
    pid = int(state_of("MainPID"))
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert {b"whoseblock.watch", b"--policy=" + os.fsencode(POLICY), b"--interval=5.0"} <= {*words}
    return pid


def events_of_disks(pid: int) -> set[int]:
    """Return the inodes of the sockets of the kernel's events that systemd passed to a process."""
    lines = Path("/proc/1/net/netlink").read_text().splitlines()[1:]
    # The protocol, the groups and the inode of each socket of the network that systemd is in.
    rows = [(int(one.split()[1]), int(one.split()[3], 16), int(one.split()[9])) for one in lines]
    open_files = {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()}
    return {
        inode
        for protocol, groups, inode in rows
        if protocol == KOBJECT_UEVENT and groups & 1 and f"socket:[{inode}]" in open_files
    }


def stays_stopped() -> None:
    """Stop the service, and see that no event of a disk starts it again."""
    run(["systemctl", "stop", UNIT])
    Path("/sys/block/loop0/uevent").write_text("change")
    # The first process answers after it has read its other events.
    run(["systemctl", "daemon-reload"])
    words = ["systemctl", "is-active", UNIT, SOCKET.name]
    states = subprocess.run(words, stdout=subprocess.PIPE, check=False).stdout
    assert states.split() == [b"inactive", b"inactive"]


def make_files() -> tuple[Path, bytes]:
    """Make a file that belongs to another user and has setuid bits, and its copy."""
    file = ROOT / "db/data.bin"
    content = os.urandom(16 * BLOCK)
    for folder in (file.parent, GOOD / "db"):
        folder.mkdir(parents=True)
        (folder / file.name).write_bytes(content)
    os.chown(file, 65534, 65533)
    file.chmod(0o6711)
    status = file.stat()
    os.utime(GOOD / "db" / file.name, ns=(status.st_atime_ns, status.st_mtime_ns))
    return file, content


def expire_watchdog(pid: int) -> None:
    """Stop the daemon, which then feeds no watchdog, and wait for the next one."""
    os.kill(pid, SIGSTOP)
    # In the daemon's name: three minutes are too long for a test.
    sender = struct.pack("=iII", pid, 0, 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        message = ([b"WATCHDOG_USEC=1000000"], [(socket.SOL_SOCKET, SCM_CREDENTIALS, sender)])
        notify.sendmsg(*message, 0, "/run/systemd/notify")
    wait_for(lambda: state_of("NRestarts") == "1" and state_of("SubState") == "running", 600)
    assert int(state_of("MainPID")) not in (0, pid)
    assert f"{UNIT}: Watchdog timeout" in run(["dmesg"]).decode(errors="replace")


def test_the_unit_that_is_shipped(undo: Undo) -> None:
    undo.callback(lambda: print(run(["journalctl", "-b", "--no-pager", "-u", UNIT]).decode()))
    pid = install()
    before = events_of_disks(pid)
    assert before
    # All of this is newer than the daemon.
    served = make_disk(undo)
    file, content = make_files()
    status = file.stat()
    reader = subprocess.Popen(
        ["setpriv", "--reuid", "65534", "tail", "-f", file], stdout=subprocess.DEVNULL
    )
    undo.callback(reader.kill)

    lost = fail(served, file, 3)

    entry = entry_of(lost)
    check(entry, {reader.pid}, "/db/data.bin")
    assert finished(entry) == dict.fromkeys(("exec", "respond", "restore"), "verified")
    assert (served.bad(), file.read_bytes()) == ([], content)
    assert [getattr(file.stat(), name) for name in ("st_mode", "st_uid", "st_gid")] == [
        *(status.st_mode, status.st_uid, status.st_gid)
    ]
    assert Path(f"{TOLD}.places").read_text().split() == WRITABLE
    assert str(file) in TOLD.read_text()
    assert wait_for(Path(f"{TOLD}.page").exists)
    sources: Json = json.loads(run([WHOSEBLOCK, "status", "--json"]))["sources"]
    assert {name for name, one in sources.items() if one["watched"]} == set(sources), sources

    expire_watchdog(pid)

    # systemd makes another socket for the next one.
    assert events_of_disks(int(state_of("MainPID"))) not in (set(), before)
    stays_stopped()


def check(entry: History, users: set[int], path: str) -> None:
    """See that a failure has its file with every path, and who uses it."""
    assert {report.source for report in entry.reports} & {"kmsg", "tracepoint"}
    answer = answer_of(entry)
    assert answer["complete"], answer["notes"]
    (row,) = rows(answer)
    assert row["paths"] == [path]
    assert {process["pid"] for process in row["processes"]} >= users
    assert not re.search("denied|not permitted", str(answer))
