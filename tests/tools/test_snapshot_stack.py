"""The program that takes a snapshot of this machine's devices."""

import sys
from pathlib import Path

from tests.support.commands import whoseblock
from tests.support.tools import CHECKOUT, program, run


def test_a_snapshot_of_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "machine.tar.xz"
    tool = CHECKOUT / "tools" / "snapshot_stack.py"
    run([sys.executable, tool, out])
    program("xz")  # tar runs it
    run(["tar", "xJf", out, "-C", tmp_path])
    disks = sorted(path.name for path in (tmp_path / "sys/block").iterdir())
    assert disks == sorted(path.name for path in Path("/sys/block").iterdir())
    for disk in disks:
        done = whoseblock("stack", disk, "--root", tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(disk)
