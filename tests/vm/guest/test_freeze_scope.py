"""The guard of a frozen filesystem under systemd: killing a unit must not leave it frozen."""

import os
import sys
from pathlib import Path

from tests.vm.guest.machine import Undo, make_xfs, modprobe, run, wait_for

from whoseblock.respond.freezing import check_not_frozen

#: The first process of this machine, for tests.vm.machine.
INIT = "systemd"

_FREEZING = """
import os, sys, time
from whoseblock.respond.freezing import FreezeLimits, frozen
place = os.open(sys.argv[1], os.O_RDONLY)
with frozen(place, FreezeLimits(600, 900, 300), lambda one: one and print(one.pid, flush=True)):
    print("frozen", flush=True)
    time.sleep(600)
"""


def test_a_unit_that_is_killed_leaves_nothing_frozen(undo: Undo) -> None:
    modprobe("loop", "xfs")
    image, root, told = Path("/run/frozen.img"), Path("/run/frozen"), Path("/run/frozen.told")
    with image.open("wb") as file:
        file.truncate(400 << 20)
    make_xfs(str(image))
    root.mkdir()
    run(["mount", "-o", "loop", image, root])
    undo.then("umount", root)
    folder = os.open(root, os.O_RDONLY)
    undo.callback(os.close, folder)
    options = ["ProtectControlGroups=yes", f"StandardOutput=file:{told}"]
    words: list[str | Path] = ["--unit=freezing", *(f"--property={one}" for one in options)]
    words += [f"--setenv=PYTHONPATH={os.environ['PYTHONPATH']}", "--"]
    run(["systemd-run", *words, sys.executable, "-c", _FREEZING, root])
    undo.then("fsfreeze", "--unfreeze", root)
    wait_for(lambda: told.exists() and "frozen" in told.read_text(), 300)
    guard = Path("/proc") / told.read_text().split()[0]
    cgroup = (guard / "cgroup").read_text()
    assert ".scope" in cgroup
    assert "freezing.service" not in cgroup
    run(["systemctl", "kill", "--kill-who=all", "--signal=KILL", "freezing"])
    wait_for(lambda: not guard.exists(), 300)
    check_not_frozen(folder)
