"""Notes on the processes that an answer may lack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tools import CHECKOUT, need_root

from whoseblock import querying
from whoseblock.processes import Found


def test_a_filesystem_that_does_not_answer_takes_no_capability() -> None:
    assert querying._process_notes(Found([], 0, unlisted=False, omitted=0)) == []
    assert querying._process_notes(Found([], 0, unlisted=False, omitted=0, unanswered=1)) == [
        "a process could not be looked into: a filesystem does not answer"
    ]


@pytest.mark.parametrize(
    ("under", "why"),
    [
        ([], "the kernel refuses it"),
        (
            ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"],
            "that takes CAP_SYS_PTRACE",
        ),
    ],
)
def test_the_capability_is_named_only_if_it_is_missing(under: list[str], why: str) -> None:
    need_root()
    script = """if True:
    from whoseblock.processes import Found
    from whoseblock.querying import _process_notes
    print(*_process_notes(Found([], 2, unlisted=False, omitted=0)))
    """
    done = subprocess.run(
        [*under, sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(CHECKOUT, "src"))},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout == f"2 processes could not be looked into: {why}\n"
