"""Descriptors that systemd passes to a service (sd_listen_fds(3))."""

import json
import sys

import pytest
from tests.support.tools import run

SCRIPT = """
import json, os
from whoseblock.watch.status.systemd import take_descriptors
taken = take_descriptors()
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps([taken, left, [os.get_inheritable(one) for one in taken.values()]]))
"""


def take(passed: str) -> tuple[dict[str, int], list[str], list[bool]]:
    """Return what a process takes that has the descriptors 3 and 4, and what it keeps of it."""
    shell = f'exec 3</dev/null 4</dev/null; {passed} exec "$0" -c "$1"'
    taken, left, inheritable = json.loads(run(["sh", "-c", shell, sys.executable, SCRIPT]))
    return taken, left, inheritable


def test_descriptors_by_their_names() -> None:
    passed = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=uevents:other"
    assert take(passed) == ({"uevents": 3, "other": 4}, [], [False, False])
    # The third is not open.
    passed = "LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=a:b:c"
    assert take(passed) == ({"a": 3, "b": 4}, [], [False, False])


@pytest.mark.parametrize(
    "passed",
    [
        "",
        "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=uevents",
        "LISTEN_PID=$$ LISTEN_FDS=-1 LISTEN_FDNAMES=uevents",
        "LISTEN_PID=$$ LISTEN_FDNAMES=uevents",
    ],
)
def test_descriptors_of_another_process_or_none(passed: str) -> None:
    assert take(passed) == ({}, [], [])
