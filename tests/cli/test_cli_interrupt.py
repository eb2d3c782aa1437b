"""Ctrl-C ends every command with code 130, at once, and without a traceback."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.commands import COMMAND


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupt") / "disk.img"
    unpack(path)
    return path


@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize("delay", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    "words",
    [
        ["study", "{}", "--jobs", "2"],
        ["study", "{}", "--jobs", "1"],
        ["lookup", "{}", "--ranges", "-"],
        ["respond", "{}", "--dmesg", "-", "--journal", "{}.journal"],
    ],
)
def test_it_ends_at_once(image: Path, words: list[str], delay: float, *, whole_group: bool) -> None:
    # A terminal interrupts the processes of a group; ``kill -INT`` only one.
    if delay > 1 and words[0] != "study":
        return
    process = subprocess.Popen(
        [*COMMAND, *(word.format(image) for word in words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        time.sleep(delay)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        begun = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert time.monotonic() - begun < 8
