"""The files installed with the daemon: its systemd unit, and the example of a policy."""

import re
import subprocess
from pathlib import Path

import pytest
from tests.support.tools import CHECKOUT, program

from whoseblock.watch.policy.rules import read_policy

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


def test_the_example_does_nothing_until_it_is_asked_to(tmp_path: Path) -> None:
    example = SHARE / "policy.toml"
    assert read_policy(example).rules == ()
    # Every rule in it is one.
    told = re.sub(r"^# (?=\[\[|[a-z-]+ = )", "", example.read_text("utf-8"), flags=re.MULTILINE)
    policy = tmp_path / "policy.toml"
    policy.write_text(told)
    assert [rule.name for rule in read_policy(policy).rules] == [
        "page",
        "database",
        "restore",
        "heal",
    ]


@pytest.mark.parametrize("block", ["policy.toml"])
def test_the_policy_of_the_guide_is_valid(tmp_path: Path, block: str) -> None:
    guide = (CHECKOUT / "docs/guides/watch.md").read_text("utf-8")
    found = re.search(rf"<!-- file: {re.escape(block)} -->\n```text\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    policy = tmp_path / block
    policy.write_text(found[1])
    assert [rule.actions for rule in read_policy(policy).rules] == [
        ("exec", "signal"),
        ("respond",),
    ]
