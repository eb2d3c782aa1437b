"""Changes of processes in the middle of a scan: the scan is stopped there, and they continue."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.mapping_processes import running
from tests.support.tools import CHECKOUT, need_root

from whoseblock import processes
from whoseblock.fs.base import Process
from whoseblock.process_text import ProcessStat
from whoseblock.processes import Wanted, find_processes

PAGE = 4096


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    status = path.stat()
    return Wanted(status.st_dev, status.st_ino, 0, PAGE)


def interrupt(monkeypatch: pytest.MonkeyPatch, pid: int) -> list[bytes]:
    """Send a signal to a process each time that it is described; give the names that it then has.

    Its answer to the signal is to take another name.
    """
    names: list[bytes] = []
    comm = Path(f"/proc/{pid}/comm")
    describe = processes._Scan._describe

    def interrupted(scan: processes._Scan, folder: int, number: int, stat: ProcessStat) -> Process:
        described = describe(scan, folder, number, stat)
        if number == pid:
            before = comm.read_bytes()
            os.kill(pid, signal.SIGUSR1)
            while comm.read_bytes() == before:
                pass
            names.append(comm.read_bytes())
        return described

    monkeypatch.setattr(processes._Scan, "_describe", interrupted)
    return names


def test_files_of_a_process_are_not_attributed_to_its_next_program(
    tmp_path: Path, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """if True:
    # A Python handler must wait for the call that the main thread is in; this thread is in none.
    def turn():
        signal.sigwait([signal.SIGUSR1])
        os.execv("/bin/cat", ["cat"])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    threading.Thread(target=turn, daemon=True).start()
    ready(map_file(0, PAGE))
    """
    with running(program, tmp_path / "file") as (pid, _):
        names = interrupt(monkeypatch, pid)
        assert find_processes([wanted]).processes == [()]
    assert names == [b"cat\n"]


def test_a_process_cannot_hide_by_changing_its_name(
    tmp_path: Path, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """if True:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    def rename_all_the_time():
        for number in range(100):
            signal.sigwait([signal.SIGUSR1])
            open(f"/proc/self/task/{pid}/comm", "w").write(f"name {number}")
    threading.Thread(target=rename_all_the_time, daemon=True).start()
    ready(map_file(0, PAGE))
    """
    with running(program, tmp_path / "file") as (pid, address):
        names = interrupt(monkeypatch, pid)
        ((process,),) = find_processes([wanted]).processes
    assert (process.pid, process.mappings[0].address) == (pid, address)
    assert process.command.encode() + b"\n" in names
    assert len(names) == 3


REUSED = """
import os, signal, sys, time
from pathlib import Path
from whoseblock import processes

path = sys.argv[1]
status = os.stat(path)
wanted = [processes.Wanted(status.st_dev, status.st_ino, 0, 4096)]

def holder():
    pid = os.fork()
    if pid == 0:
        os.open(path, os.O_RDONLY)
        signal.pause()
    while not any(p.pid == pid for p in processes.find_processes(wanted).processes[0]):
        time.sleep(0.01)
    return pid

first = holder()
read_stat, calls = processes._read_stat, []

def reused(folder):
    stat = read_stat(folder)
    if not calls and os.readlink(f"/proc/self/fd/{folder}") == f"/proc/{first}":
        calls.append(folder)
        os.kill(first, 9)
        os.waitpid(first, 0)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(first - 1))
        assert holder() == first
    return stat

processes._read_stat = reused
during = processes.find_processes(wanted).processes[0]
after = processes.find_processes(wanted).processes[0]
assert (len(calls), during, [p.pid for p in after]) == (1, (), [first]), (calls, during, after)
os.kill(first, 9)
"""


def test_a_reused_pid_is_not_the_old_process(tmp_path: Path, wanted: Wanted) -> None:
    need_root()
    assert wanted.length == PAGE
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "-p",
            "-f",
            "--mount-proc",
            sys.executable,
            "-c",
            REUSED,
            tmp_path / "file",
        ],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT / "src")},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
