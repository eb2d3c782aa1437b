"""One runner of commands: its limits, and what it keeps of their output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whoseblock.respond.commands import CommandError, Output, run_shell, run_with_finding


def ran(
    script: str, output: Output = Output.FIRST, seconds: float = 20
) -> tuple[int | None, bytes]:
    words = ["/bin/sh", "-c", script]
    return run_with_finding(words, b"finding", seconds=seconds, output=output)[:2]


def test_a_command_that_cannot_be_started_is_an_error() -> None:
    for words, error in ((["/no/such/program"], OSError), (["/bin/echo", "nul\0"], ValueError)):
        with pytest.raises(error):
            run_with_finding(words, b"", seconds=20, output=Output.LAST)


@pytest.mark.parametrize("output", Output)
def test_a_command_that_takes_too_long_has_no_status(output: Output) -> None:
    began = time.monotonic()
    assert ran("sleep 60 & sleep 60", output, seconds=0.3) == (None, b"")
    assert time.monotonic() - began < 10


def test_each_part_of_the_output_has_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    script = "cat; echo err >&2; kill -TERM $$"
    assert ran(script, Output.FIRST) == (-signal.SIGTERM, b"finding")
    assert capfd.readouterr() == ("", "err\n")
    assert ran(script, Output.LAST) == (-signal.SIGTERM, b"findingerr\n")
    assert capfd.readouterr() == ("", "")
    assert ran(script, Output.PASSED) == (-signal.SIGTERM, b"")
    assert capfd.readouterr() == ("", "findingerr\n")


def test_the_last_output_is_kept_whatever_its_length() -> None:
    printed = "".join(f"{n}\n" for n in range(1, 100_001)).encode()
    assert ran("seq 100000", Output.LAST) == (0, printed[-2000:])


@pytest.mark.parametrize("script", ["yes", "yes & yes", "yes | head -c 65537"])
def test_a_command_that_prints_for_ever_is_killed_before_its_time(script: str) -> None:
    with pytest.raises(CommandError, match="printed more than 65536 bytes: not used"):
        run_shell(script, b"", seconds=600, capture=True)
    assert run_shell("yes | head -c 65536", b"", seconds=600, capture=True) == b"y\n" * 32768


def test_captured_output_is_bounded() -> None:
    # In a process of its own: it is about the most memory that it ever had.
    script = (
        "import resource\n"
        "from whoseblock.respond.commands import Output, run_with_finding\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = most()\n"
        "run_with_finding(['head', '-c', '300000000', '/dev/zero'], b'', seconds=60,"
        " output=Output.LAST)\n"
        "print(most() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(done.stdout) < 16 << 10, "KiB more than before"


def test_a_background_process_that_has_the_output_open_delays_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    assert run_shell(f"sleep 60 & echo $! > {pid}; echo path", b"", seconds=20, capture=True) == (
        b"path\n"
    )
    assert time.monotonic() - began < 10
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_the_environment_has_what_the_caller_adds_and_not_what_it_removes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("REMOVED", "2")
    end = run_with_finding(
        ["/bin/sh", "-c", 'echo "$KEPT,${REMOVED-none},$ADDED"'],
        b"",
        seconds=20,
        output=Output.FIRST,
        environment={"ADDED": "3"},
        removed=("REMOVED",),
    )
    assert end[:2] == (0, b"1,none,3\n")
