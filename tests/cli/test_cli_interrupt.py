"""Ctrl-C ends every command with code 130, at once, and without a traceback."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.commands import COMMAND


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupt") / "disk.img"
    unpack(path)
    return path


#: With so many steps, a study takes longer than any of the delays, however fast the machine is.
STUDY = [["study", "{}", "--steps", "1000000", "--jobs", jobs] for jobs in ("1", "2")]
OTHERS = [
    ["lookup", "{}", "--ranges", "-"],
    ["respond", "{}", "--dmesg", "-", "--journal", "{}.journal"],
]


@pytest.fixture(autouse=True)
def _received() -> Iterator[None]:
    """Handle the signal, so that commands get it too: background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize(
    ("words", "delay"),
    [
        *((words, 1.0) for words in OTHERS),
        # A study does something else at each of these moments.
        *((words, delay) for words in STUDY for delay in (1.0, 2.0, 4.0)),
    ],
)
def test_ctrl_c_ends_every_command_at_once(
    image: Path, words: list[str], delay: float, *, whole_group: bool
) -> None:
    # A terminal interrupts the processes of a group; ``kill -INT`` only one.
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
