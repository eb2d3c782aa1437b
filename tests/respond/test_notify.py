"""Telling commands and processes of a finding."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.mapping_processes import running

from whoseblock.fs.base import Answer, FileOwner, Mapping, Process
from whoseblock.processes import Wanted, find_processes
from whoseblock.respond.notify import NotifyError, run_command, signal_number, signal_processes

PAGE = 4096
NAME = "/odd\udcff\nname"
ANSWER = Answer(
    1257472,
    PAGE,
    complete=True,
    notes=(),
    owners=(
        FileOwner(
            1257472,
            PAGE,
            inode=131,
            fork="data",
            what="data",
            file_offset=0,
            unwritten=False,
            shared=False,
            paths=(NAME,),
        ),
    ),
)

#: Says which signals it gets, and lives on.
HEARS = """
signal.signal(signal.SIGUSR1, lambda number, frame: open(more[0], "a").write(f"{pid} "))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * PAGE))
    return path


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    (tmp_path / "heard").touch()
    return tmp_path / "heard"


def users(file: Path, offset: int = 0, length: int = PAGE) -> tuple[Process, ...]:
    status = file.stat()
    found = find_processes([Wanted(status.st_dev, status.st_ino, offset, length)])
    return found.processes[0]


def heard_by(heard: Path, count: int) -> list[int]:
    """Wait until so many signals were heard, and a little for any that must not be."""
    end = time.monotonic() + 10
    while len(heard.read_text().split()) < count and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    return sorted(map(int, heard.read_text().split()))


def test_only_processes_that_map_the_page_are_signalled(file: Path, heard: Path) -> None:
    maps = HEARS + "map_file(0, 2 * PAGE); map_file(0, PAGE); ready()"
    elsewhere = HEARS + "map_file(8 * PAGE, PAGE); ready()"
    opens = HEARS + "kept = open(path); ready()"
    given = file, str(heard)
    with (
        running(maps, *given) as (one,),
        running(maps, *given) as (two,),
        running(elsewhere, *given),
        running(opens, *given) as (three,),
    ):
        processes = users(file)
        assert {one, two, three} <= {process.pid for process in processes}
        # A process that several rows of an answer name gets it once.
        done = signal_processes("SIGUSR1", [*processes, *processes])
        assert done == sorted([(one, "sent"), (two, "sent")])
        assert heard_by(heard, 2) == sorted([one, two])


def test_another_process_with_the_same_number_gets_nothing(file: Path, heard: Path) -> None:
    with running(HEARS + "map_file(0, PAGE); ready()", file, str(heard)) as (pid,):
        (process,) = users(file)
        older = replace(process, start_time=process.start_time - 1)
        assert signal_processes("usr1", [older]) == [(pid, "gone")]
        assert heard_by(heard, 0) == []
        assert signal_processes("usr1", [process]) == [(pid, "sent")]
        assert heard_by(heard, 1) == [pid]


def test_a_name_with_parentheses_and_spaces_hides_nothing(file: Path, heard: Path) -> None:
    program = HEARS + "map_file(0, PAGE); rename(b'a) S 1 (b'); ready()"
    with running(program, file, str(heard)) as (pid,):
        assert signal_processes("USR1", users(file)) == [(pid, "sent")]
        assert heard_by(heard, 1) == [pid]


@pytest.fixture
def ended() -> Iterator[Process]:
    """Provide a zombie process."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat").read_text()
    start_time = int(stat.rpartition(")")[2].split()[19])
    assert child.stdin is not None
    child.stdin.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)
    mapping = Mapping(0, PAGE, 0, shared=True, readable=True, writable=False, executable=False)
    yield Process(child.pid, start_time, "", "python", 0, mappings=(mapping,))
    child.wait()


def test_ended_processes_are_not_signalled(ended: Process) -> None:
    assert signal_processes("USR1", [ended]) == [(ended.pid, "gone")]
    os.waitpid(ended.pid, 0)
    assert signal_processes("USR1", [ended]) == [(ended.pid, "gone")]


def test_no_signal_reaches_whoseblock_its_parent_or_process_1(file: Path) -> None:
    with running("map_file(0, PAGE); ready()", file):
        (process,) = users(file)
    for pid in (1, os.getpid(), os.getppid()):
        stat = Path(f"/proc/{pid}/stat").read_text()
        start_time = int(stat.rpartition(")")[2].split()[19])
        (done,) = signal_processes("KILL", [replace(process, pid=pid, start_time=start_time)])
        assert done[0] == pid
        assert done[1].startswith("refused: ")


def test_a_refusal_of_the_kernel_is_reported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int, _number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with running("map_file(0, PAGE); ready()", file) as (pid,):
        done = signal_processes("USR1", users(file))
        assert done == [(pid, "refused: operation not permitted")]


def test_signals_have_names() -> None:
    assert signal_number("hup") == signal_number("SIGHUP") == signal.SIGHUP
    for wrong in ("", "SIG", "SIGSIGHUP", "9", "NOSUCH"):
        with pytest.raises(ValueError, match=r"unknown signal .*; known signals: .*HUP, .*TERM"):
            signal_processes(wrong, [])


# ---------------------------------------------------------------------- commands


def test_a_command_gets_the_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command(f"cat > {tmp_path}/got; echo out; echo err >&2", ANSWER)
    (line,) = (tmp_path / "got").read_bytes().splitlines()
    got = json.loads(line)
    assert got["owners"][0]["paths"] == [NAME]
    assert (got["start"], got["complete"]) == (1257472, True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "out\nerr\n"


def test_a_command_may_ignore_its_input() -> None:
    run_command("true", replace(ANSWER, notes=("much to say" * 100_000,)))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("exit 7", "failed with status 7"),
        ("no-such-command-at-all", "failed with status 127"),
        ("kill -TERM $$", "was ended by SIGTERM"),
        ("nul\0", "cannot be started"),
    ],
)
def test_a_command_that_fails_is_reported(command: str, why: str) -> None:
    with pytest.raises(NotifyError, match=why):
        run_command(command, ANSWER)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    command = f"sleep 100 & echo $! > {tmp_path}/pid; wait"
    began = time.monotonic()
    with pytest.raises(NotifyError, match="took longer than 3 seconds"):
        run_command(command, ANSWER, seconds=3)
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        if state == "Z":
            break  # the first process does not wait here
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_command_may_leave_something_running(tmp_path: Path) -> None:
    began = time.monotonic()
    run_command(f"sleep 100 & echo $! > {tmp_path}/pid", ANSWER)
    assert time.monotonic() - began < 10
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
