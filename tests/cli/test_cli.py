"""The command line as a whole: help, errors and a broken pipe."""

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.commands import COMMAND, whoseblock

from whoseblock.errors import (
    NotAFilesystemError,
    OutOfDeviceError,
    RangeSyntaxError,
    TargetError,
    WhoseblockError,
)


def test_help_has_examples_and_exit_codes() -> None:
    assert "Exit status:" in whoseblock("--help").stdout
    shown = whoseblock("lookup", "--help").stdout
    assert "Examples:" in shown
    assert "whoseblock lookup disk.img 307p" in shown
    assert whoseblock("--version").stdout.startswith("whoseblock ")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["/nonexistent", "1"], TargetError),
        (["{image}", "x"], RangeSyntaxError),
        (["{image}", "1T"], OutOfDeviceError),
        ([__file__, "1"], NotAFilesystemError),
    ],
)
def test_errors_are_a_sentence_and_a_code(
    demo_image: Path, words: list[str], error: type[WhoseblockError]
) -> None:
    done = whoseblock("lookup", *(word.format(image=demo_image) for word in words))
    assert done.returncode == error.exit_code
    assert done.stdout == ""
    sentence, *hint = done.stderr.splitlines()
    assert sentence.startswith("whoseblock: ")
    assert len(hint) <= 1
    assert all(line.startswith("hint: ") for line in hint)


def test_a_broken_pipe_is_silent(demo_image: Path) -> None:
    ranges = "".join(f"{page}p\n" for page in range(20_000))
    words: list[str | Path] = [*COMMAND, "lookup", demo_image, "--ranges", "-", "--no-paths"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        words, input=ranges.encode(), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
