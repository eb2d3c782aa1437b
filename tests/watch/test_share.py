"""The files installed with the daemon: its systemd unit, and the example of a policy."""

import re
import subprocess
from pathlib import Path

import pytest
from tests.support.tools import CHECKOUT, program

from whoseblock.watch.policy.rules import parse_policy, read_policy

SHARE = CHECKOUT / "share"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    unit = tmp_path / "whoseblock-watch.service"
    text = (SHARE / "whoseblock-watch.service").read_text("utf-8")
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    # Whether a man page is installed is no matter of the unit.
    unit.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, check=False, text=True)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


def test_the_example_does_nothing_until_it_is_asked_to() -> None:
    example = SHARE / "policy.toml"
    assert read_policy(example).rules == ()
    # Every rule in it is one.
    told = re.sub(r"^# (?=\[\[|[a-z-]+ = )", "", example.read_text("utf-8"), flags=re.MULTILINE)
    # Its programs are examples, too.
    assert [rule.name for rule in parse_policy(example.name, told, here=False).rules] == [
        "page",
        "database",
        "restore",
        "heal",
    ]


@pytest.mark.parametrize("block", ["policy.toml"])
def test_the_policy_of_the_guide_is_valid(block: str) -> None:
    guide = (CHECKOUT / "docs/guides/watch.md").read_text("utf-8")
    found = re.search(rf"<!-- file: {re.escape(block)} -->\n```text\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    assert [rule.actions for rule in parse_policy(block, found[1], here=False).rules] == [
        ("exec", "signal"),
        ("respond",),
    ]
