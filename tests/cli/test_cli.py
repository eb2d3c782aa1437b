"""The command line as a person or a script meets it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.cli.terminal import printable
from whoseblock.errors import (
    NotAFilesystemError,
    OutOfDeviceError,
    RangeSyntaxError,
    TargetError,
    WhoseblockError,
)

COMMAND = [sys.executable, "-m", "whoseblock"]


def run(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], input=stdin, capture_output=True, text=True, check=False
    )


def test_help_has_examples_and_exit_codes() -> None:
    assert "Exit status:" in run("--help").stdout
    shown = run("lookup", "--help").stdout
    assert "Examples:" in shown
    assert "whoseblock lookup disk.img 307p" in shown
    assert run("--version").stdout.startswith("whoseblock ")


def test_json_is_a_line_for_each_range_in_order(demo_image: Path) -> None:
    ranges = "# list\n14p\n\n0+512\n"
    done = run("lookup", demo_image, "307p", "--ranges", "-", "--json", stdin=ranges)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["start"], one["length"]) for one in answers] == [
        (1257472, 4096),
        (57344, 4096),
        (0, 512),
    ]
    page, free, static = answers
    assert page["owners"] == [
        {
            "kind": "file", "start": 1257472, "length": 4096, "inode": 131, "fork": "data",
            "what": "data", "file_offset": 1048576, "unwritten": False, "shared": True,
            "paths": ["/a"],
        },
        {
            "kind": "file", "start": 1257472, "length": 4096, "inode": 262273, "fork": "data",
            "what": "data", "file_offset": 393216, "unwritten": False, "shared": True,
            "paths": ["/d/e/c"],
        },
    ]  # fmt: skip
    assert free["owners"] == [{"kind": "free", "start": 57344, "length": 4096}]
    assert static["owners"][0]["what"] == "static"
    assert all(one["complete"] is True and one["notes"] == [] for one in answers)


def test_without_paths_there_is_no_key_for_them(demo_image: Path) -> None:
    (line,) = run("lookup", demo_image, "307p", "--json", "--no-paths").stdout.splitlines()
    assert all("paths" not in owner for owner in json.loads(line)["owners"])


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
    done = run("lookup", *(word.format(image=demo_image) for word in words))
    assert done.returncode == error.exit_code
    assert done.stdout == ""
    sentence, *hint = done.stderr.splitlines()
    assert sentence.startswith("whoseblock: ")
    assert len(hint) <= 1
    assert all(line.startswith("hint: ") for line in hint)


def test_a_range_is_needed(demo_image: Path) -> None:
    done = run("lookup", demo_image)
    assert done.returncode == 2
    assert "RANGE" in done.stderr


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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_every_shell(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_WHOSEBLOCK_COMPLETE" in done.stdout


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_one_question_loads_neither_numpy_nor_rich(demo_image: Path, words: list[str]) -> None:
    code = (
        "import sys; from whoseblock.cli import main\n"
        "try: main()\n"
        "finally: print({'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "lookup", demo_image, "307p", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "set()"


def _stderr_of_long_work(demo_image: Path, stderr: int) -> None:
    code = "from whoseblock.cli import main, progress\nprogress._PATIENCE_S = 0\nmain()"
    ranges = "".join(f"{page}p\n" for page in range(2000))
    subprocess.run(
        [sys.executable, "-c", code, "lookup", demo_image, "--ranges", "-", "--json"],
        input=ranges.encode(),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        check=True,
    )


def test_long_work_shows_its_progress_on_a_terminal_only(demo_image: Path, tmp_path: Path) -> None:
    primary, terminal = pty.openpty()
    _stderr_of_long_work(demo_image, terminal)
    os.close(terminal)
    assert b"ranges answered" in os.read(primary, 1 << 16)
    os.close(primary)
    with (tmp_path / "stderr").open("w+b") as file:
        _stderr_of_long_work(demo_image, file.fileno())
        file.seek(0)
        assert file.read() == b""


@given(st.text() | st.binary().map(os.fsdecode))
def test_no_name_writes_to_the_terminal(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    if name.isprintable() and "\\" not in name:
        assert shown == name


@given(st.binary().map(os.fsdecode), st.binary().map(os.fsdecode))
def test_no_two_names_look_alike(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)
