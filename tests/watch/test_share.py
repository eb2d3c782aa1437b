"""The example of a policy, and that of the guide."""

import re

import pytest
from tests.support.tools import CHECKOUT

from whoseblock.watch.policy.parsing import parse_policy, read_policy

SHARE = CHECKOUT / "share"


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
