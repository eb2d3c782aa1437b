"""Starting virtual machines from the host, and reading what the scenarios in them found."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.support.tools import CHECKOUT, Missing, find

__all__ = ["GUEST", "GUEST_FILES", "Group", "Result", "need_machine", "scenarios"]

GUEST = CHECKOUT / "tests" / "vm" / "guest"
GUEST_FILES = sorted(GUEST.glob("test_*.py"))

#: A group that takes longer has hung.
_TIMEOUT_S = 1800
_PMEM_MIB = 1024


@functools.cache
def need_machine() -> None:
    """Raise `Missing` unless a virtual machine can be started; fetch a kernel if there is none."""
    if find("qemu-system-x86_64") is None:
        raise Missing("qemu-system-x86_64 is not installed: install the package qemu-system-x86")
    _fetch("tools/vm/kernel")
    # The scenarios make filesystems that older versions do not know.
    _fetch("tools/xfsprogs")


def _fetch(tool: str) -> None:
    done = subprocess.run([CHECKOUT / tool], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing((done.stderr.splitlines() or [f"{tool} failed"])[-1])


def _has_systemd(file: Path) -> bool:
    """Return whether the scenarios of a file run under systemd; raise `Missing` without it."""
    if re.search('^INIT = "systemd"$', file.read_text(), re.MULTILINE) is None:
        return False
    # Debian has had it in both places.
    places = (Path(folder, "systemd/systemd") for folder in ("/usr/lib", "/lib"))
    if not any(os.access(place, os.X_OK) for place in places):
        raise Missing("systemd is not installed: install the package systemd")
    return True


class Result(NamedTuple):
    """The outcome of a scenario."""

    outcome: str
    seconds: float
    text: str


def scenarios(file: Path) -> list[str]:
    """Return the names of the scenarios in a file of the guest's, without importing it."""
    return re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)


class Group:
    """Scenarios of one file, all run in one boot of a virtual machine."""

    def __init__(self, file: Path, names: list[str]) -> None:
        self.share = CHECKOUT / "build" / "vm" / file.stem
        self.share.mkdir(parents=True, exist_ok=True)
        results = self.share / "results.jsonl"
        results.unlink(missing_ok=True)
        started = time.monotonic()
        environment = {
            "PYTHONPATH": f"{CHECKOUT / 'src'}:{CHECKOUT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "WHOSEBLOCK_VM_RESULTS": str(results),
        }
        # -c: none of the host's own options; --confcutdir: none of its fixtures.
        command = [
            *(str(CHECKOUT / "tools/vm/run"), "--pmem", str(_PMEM_MIB), "--share", str(self.share)),
            *["--systemd"] * _has_systemd(file),
            *("env", *(f"{name}={value}" for name, value in environment.items())),
            *(sys.executable, "-m", "pytest"),
            *("-c", str(GUEST / "pytest.ini"), "--confcutdir", str(GUEST)),
            *(f"{file}::{name}" for name in names),
        ]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VM_TIMEOUT": str(_TIMEOUT_S)},
            check=False,
        )
        #: Whether the machine ended by itself: pytest's own verdict is 0 or 1.
        self.whole = done.returncode in (0, 1)
        self.output = done.stdout.decode(errors="replace").replace("\r\n", "\n")
        (self.share / "output.log").write_text(self.output)
        self.seconds = time.monotonic() - started
        #: How each scenario went, by its name and its parameters.
        self.results: dict[str, Result] = {}
        for line in results.read_text().splitlines() if results.exists() else ():
            self._add(json.loads(line))

    def _add(self, phase: dict[str, str | float]) -> None:
        """Put the phases of a scenario together: the worst says how it went."""
        name = str(phase["test"])
        before = self.results.get(name, Result("passed", 0, ""))
        outcome = str(phase["outcome"]) if phase["outcome"] != "passed" else before.outcome
        text = "\n".join(part for part in (before.text, str(phase["text"]).strip()) if part)
        self.results[name] = Result(outcome, before.seconds + float(phase["seconds"]), text)

    def result(self, name: str) -> Result:
        """Return the outcome of a scenario for each of its parameters, or how the machine ended."""
        found = {key: one for key, one in self.results.items() if key.partition("[")[0] == name}
        seconds = sum(one.seconds for one in found.values())
        bad = {key: one for key, one in found.items() if one.outcome != "passed"}
        if bad:
            outcome = (
                "failed" if any(one.outcome == "failed" for one in bad.values()) else "skipped"
            )
            return Result(outcome, seconds, "\n".join(f"{key}:\n{bad[key].text}" for key in bad))
        if found and self.whole:
            return Result("passed", seconds, "")
        console = self.share / "console.log"
        last = console.read_text(errors="replace")[-4000:] if console.exists() else ""
        return Result(
            "failed", 0, f"it has not been run to its end:\n{self.output[-4000:]}\n{last}"
        )
