"""The progress bar."""

import os
import pty
import subprocess
import sys
from pathlib import Path


def _stderr_of_long_work(demo_image: Path, stderr: int) -> None:
    code = (
        "from functools import partial\n"
        "from whoseblock.cli import main\n"
        "from whoseblock.cli.presentation.progress import ProgressBar\n"
        "from whoseblock.cli import report_owners\n"
        "report_owners.ProgressBar = partial(ProgressBar, delay_s=0)\n"
        "main()"
    )
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
